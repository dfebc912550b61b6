//! What is wrong with people and with what is asked of them: keys that are none, two people with one key,
//! an approval that nobody could give.

use super::{
    diagnostic::{Diagnostic, suggest},
    lint_estate::item_place,
    load::place,
    parse::Source,
};
use crate::model::{
    estate::{Estate, Person},
    ids::PersonName,
    node::{Node, NodeValue, Pos},
    plan::Approval,
    signing::{fingerprint, public_key},
};
use std::collections::{BTreeMap, BTreeSet};

type Found = Vec<Diagnostic>;

/// Each key can be used and is one person's alone; so is each login.
pub(super) fn check_people(source: &Source, root: &Node, estate: &Estate, found: &mut Found) {
    let (mut keys, mut logins) = (BTreeMap::new(), BTreeMap::new());
    for (name, person) in &estate.people {
        let node = root.get("people").and_then(|all| all.get(name.as_str()));
        let at = |list: &str, index: usize| item_place(node.and_then(|node| node.get(list)), index).unwrap_or(root.pos);
        for (index, text) in person.keys.iter().enumerate() {
            match public_key(text) {
                Err(why) => found.push(source.error(at("keys", index), "bad-key", format!("a key of `{name}`: {why}"))),
                Ok(key) => twice(source, at("keys", index), "key", &mut keys, fingerprint(&key), name, found),
            }
        }
        for (index, login) in person.logins.iter().enumerate() {
            twice(source, at("logins", index), "login", &mut logins, login.clone(), name, found);
        }
    }
}

/// One person is one: nobody approves twice under two names.
fn twice<'p>(
    source: &Source,
    pos: Pos,
    what: &str,
    seen: &mut BTreeMap<String, &'p PersonName>,
    value: String,
    name: &'p PersonName,
    found: &mut Found,
) {
    match seen.get(&value) {
        Some(other) if *other != name => {
            let made = source.error(pos, "same-person", format!("this {what} of `{name}` is that of `{other}`, too"));
            found.push(made.help("two names for one person would make two approvals of one; keep one of them"));
        }
        _ => drop(seen.insert(value, name)),
    }
}

/// The tree of an approval with its facts' values taken out: they may be expressions over what is not known yet.
pub(super) fn without_values(with: &Node) -> Node {
    let mut tree = with.clone();
    let NodeValue::Map(entries) = &mut tree.value else { return tree };
    let facts = entries.iter_mut().filter(|(key, _)| key.name == "facts").map(|(_, facts)| facts);
    for facts in facts {
        let NodeValue::Map(facts) = &mut facts.value else { continue };
        for (_, fact) in facts {
            let NodeValue::Map(parts) = &mut fact.value else { continue };
            for (_, value) in parts.iter_mut().filter(|(key, _)| key.name == "value") {
                value.value = NodeValue::Text { text: String::new(), quoted: true };
            }
        }
    }
    tree
}

/// Could the people of the estate give this approval?
pub(super) fn check_approval(source: &Source, with: &Node, pos: Pos, approval: &Approval, estate: Option<&Estate>, found: &mut Found) {
    if approval.approvers == 0 {
        found.push(source.error(place(with, "approvers"), "wrong-type", "an approval takes at least one person"));
    }
    let Some(estate) = estate else { return };
    if estate.people.is_empty() && !estate.lab {
        let made = source.error(pos, "unsigned-approval", "the estate lists no people, so whoever approves is not asked for a signature");
        found
            .push(made.help("list them with their SSH keys: `people: { ana: { keys: [ssh-ed25519 AAAA…], roles: [dr-lead] } }`").warning());
    }
    let roles: BTreeSet<&str> = estate.people.values().flat_map(|person| person.roles.iter().map(String::as_str)).collect();
    for (index, role) in approval.roles.iter().enumerate().filter(|(_, role)| !roles.contains(role.as_str())) {
        let at = item_place(with.get("roles"), index).unwrap_or(pos);
        let made = source.error(at, "dangling-reference", format!("nobody in the estate has the role `{role}`"));
        found.push(made.maybe_help(suggest(role, roles.iter().copied())));
    }
    let may = |person: &&Person| {
        !person.keys.is_empty() && (approval.roles.is_empty() || person.roles.iter().any(|role| approval.roles.contains(role)))
    };
    let able = estate.people.values().filter(may).count();
    if !estate.people.is_empty() && able < approval.approvers as usize {
        let message = format!("{} people must approve, and {able} of the estate's people could", approval.approvers);
        found.push(source.error(pos, "too-few-people", message).help("give people keys and roles, or ask for fewer"));
    }
}

#[cfg(test)]
mod tests {
    use crate::runbook::load::{load_estate, load_runbook};

    const ANA: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEg6xUeTEGK162cL38TItIzTDzEf3Zo4EIgzKbjbzobr";

    fn codes(estate: &str) -> Vec<&'static str> {
        let found = load_estate("muster.yaml", estate.as_bytes()).map_or_else(|found| found, |_| Vec::new());
        found.iter().map(|one| one.code).collect()
    }

    #[test]
    fn a_key_is_one_and_is_one_persons() {
        assert!(codes(&format!("people:\n  ana: {{ keys: ['{ANA} ana@laptop'], logins: [ana] }}\n")).is_empty());
        assert_eq!(codes("people:\n  ana: { keys: ['ssh-ed25519 AAAA'] }\n"), ["bad-key"]);
        let two = format!("people:\n  ana: {{ keys: ['{ANA}'], logins: [a] }}\n  ben: {{ keys: ['{ANA} other'], logins: [a] }}\n");
        assert_eq!(codes(&two), ["same-person", "same-person"]);
    }

    #[test]
    fn what_nobody_could_approve_is_told_before_anything_runs() {
        let estate = format!("people:\n  ana: {{ keys: ['{ANA}'], roles: [dr-lead] }}\n  ben: {{ roles: [dr-lead] }}\n");
        let estate = load_estate("muster.yaml", estate.as_bytes()).unwrap().estate;
        let found = |with: &str, estate: &crate::model::estate::Estate| {
            let text = format!("runbook: r\nsteps:\n  - id: ok\n    uses: approval\n    with: {with}\n");
            let book = load_runbook("r.yaml", text.as_bytes()).unwrap();
            let (source, mut found) = (&book.source, Vec::new());
            let node = &book.runbook.steps[0].with;
            let approval = super::Approval::clone(&crate::model::node::decode(&super::without_values(node)).unwrap());
            super::check_approval(source, node, node.pos, &approval, Some(estate), &mut found);
            found.iter().map(|one| (one.code, one.is_error())).collect::<Vec<_>>()
        };
        assert!(found("{ roles: [dr-lead] }", &estate).is_empty());
        assert_eq!(found("{ approvers: 2 }", &estate), [("too-few-people", true)], "without a key nobody can sign");
        assert_eq!(found("{ approvers: 0 }", &estate), [("wrong-type", true)]);
        assert_eq!(found("{ roles: [dr-leed] }", &estate), [("dangling-reference", true), ("too-few-people", true)]);
        assert_eq!(found("{ facts: { lag: { value: '{{ steps.x.y }}', at_most: 30s } } }", &estate), []);
        assert_eq!(found("{}", &crate::model::estate::Estate::default()), [("unsigned-approval", false)]);
    }
}
