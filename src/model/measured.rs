//! What was measured, apart from what was decided. A step's intent names both: which backup is restored where to, and how far
//! the primary was when it was asked. People approve the first. The second differs each time that one looks, so it stands on record
//! beside the intent whose hash is approved, and is put back into it for whoever acts.

use serde_json::{Map, Value};

/// Takes these fields out of an intent; each is named by its path (`asked`, `wheel.since`). `None` where it has none of them.
pub fn take(intent: &mut Value, paths: &[&str]) -> Option<Value> {
    let mut measured = Value::Object(Map::new());
    for path in paths {
        let (above, name) = path.rsplit_once('.').unwrap_or(("", path));
        let parents = above.split('.').filter(|part| !part.is_empty());
        let Some(Value::Object(parent)) = parents.clone().try_fold(&mut *intent, |at, part| at.get_mut(part)) else { continue };
        // The others stay in their order, which is that of the bytes that are hashed.
        let Some(value) = parent.shift_remove(name) else { continue };
        let whole = |inner: Value, part: &str| Value::Object(Map::from_iter([(part.to_owned(), inner)]));
        join(&mut measured, &parents.rev().fold(whole(value, name), whole));
    }
    measured.as_object().is_some_and(|found| !found.is_empty()).then_some(measured)
}

/// The whole again. What stands in the intent stays as it was approved, whatever is said to have been measured.
#[must_use]
pub fn put_back(mut intent: Value, measured: Option<&Value>) -> Value {
    if let Some(measured) = measured {
        join(&mut intent, measured);
    }
    intent
}

fn join(into: &mut Value, from: &Value) {
    let (Value::Object(into), Value::Object(from)) = (into, from) else { return };
    for (name, value) in from {
        match into.get_mut(name) {
            Some(there) => join(there, value),
            None => drop(into.insert(name.clone(), value.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_measured_stands_apart_and_comes_back() {
        let whole = json!({ "to": "/srv", "asked": { "at": 1 }, "wheel": { "epoch": 3, "since": "now", "by": "ana" }, "end": null });
        let mut intent = whole.clone();
        let measured = take(&mut intent, &["asked", "wheel.since", "wheel.by", "no.such", "to.deeper"]);
        assert_eq!(intent.to_string(), r#"{"to":"/srv","wheel":{"epoch":3},"end":null}"#, "what stays does so in its order");
        assert_eq!(measured, Some(json!({ "asked": { "at": 1 }, "wheel": { "since": "now", "by": "ana" } })));
        assert_eq!(put_back(intent, measured.as_ref()), whole);
    }

    #[test]
    fn nothing_measured_replaces_what_was_approved() {
        let intent = json!({ "to": "/srv", "asked": { "timeline": 2 }, "end": null });
        let forged = json!({ "to": "/elsewhere", "asked": { "timeline": 3, "at": 1 }, "end": 5 });
        assert_eq!(put_back(intent, Some(&forged)), json!({ "to": "/srv", "asked": { "timeline": 2, "at": 1 }, "end": null }));
    }

    #[test]
    fn what_has_nothing_measured_is_as_it_was() {
        for whole in [json!({ "to": "/srv" }), Value::Null, json!([1])] {
            let mut intent = whole.clone();
            assert_eq!((take(&mut intent, &["asked", "wheel.since"]), &intent), (None, &whole));
            assert_eq!(put_back(intent, None), whole);
        }
    }
}
