//! The judgement by key, against histories: a publisher's, a subscriber somewhere in it.

use super::*;
use proptest::prelude::*;

/// Sets the key to a new value, or removes it.
#[derive(Clone, Debug)]
enum Does {
    Set(u8),
    Remove(u8),
}

fn does() -> impl Strategy<Value = Does> {
    prop_oneof![3 => (0..12u8).prop_map(Does::Set), 1 => (0..12u8).prop_map(Does::Remove)]
}

/// The rows after the first `n` transactions. Where they are written, a transaction bears `base` and its number.
fn state(history: &[Does], n: usize, base: u32) -> Vec<Keyed> {
    let mut rows: BTreeMap<u8, Keyed> = BTreeMap::new();
    for (i, does) in history.iter().take(n).enumerate() {
        match does {
            Does::Set(k) => {
                let row = Keyed { key: vec![k.to_string()], born: base + i as u32, touched: false, digest: format!("{k} of {i}") };
                _ = rows.insert(*k, row);
            }
            Does::Remove(k) => _ = rows.remove(k),
        }
    }
    rows.into_values().collect()
}

fn look(seen: Vec<Keyed>) -> Look<Keyed> {
    Look { at: Lsn(0), horizon: 0, busy: false, shape: String::new(), seen }
}

/// The publisher shows less than it has sent: the last `hidden` are committing, and what they change is touched.
fn hiding(history: &[Does], done: usize, hidden: usize) -> Look<Keyed> {
    let (mut seen, later) = (state(history, done - hidden, 0), state(history, done, 0));
    seen.iter_mut().for_each(|row| row.touched = !later.iter().any(|l| (&l.key, l.born) == (&row.key, row.born)));
    Look { busy: hidden > 0, ..look(seen) }
}

proptest! {
    #[test]
    fn what_is_in_flight_is_never_a_difference(
        history in prop::collection::vec(does(), 1..60), a in 0..60usize, b in 0..20usize, c in 0..20usize, late in 0..4usize,
        earlier in 0..60usize,
    ) {
        let before = a.min(history.len());
        let there = (before + b).min(history.len());
        let after = (there + c).min(history.len());
        let late = late.min(after - before);
        // What strayed in the round before, at a subscriber that was no further than the first look of this one.
        let past = state(&history, earlier.min(before), 5_000);
        let strayed: Strays = past.into_iter().map(|row| (row.key, row.born)).collect();
        let judged = judge(&look(state(&history, before, 0)), &look(state(&history, there, 5_000)), &hiding(&history, after, late), &strayed);
        prop_assert_eq!(judged.wrong, Vec::new());
    }

    #[test]
    fn a_difference_in_what_stood_still_is_always_found(
        history in prop::collection::vec(does(), 1..60), a in 0..60usize, b in 0..20usize, which in 0..60usize, kind in 0..3,
    ) {
        let before = a.min(history.len());
        let there = (before + b).min(history.len());
        let (old, new) = (state(&history, before, 0), state(&history, there, 0));
        let stood: Vec<Keyed> = old.iter().filter(|row| new.contains(row)).cloned().collect();
        prop_assume!(!stood.is_empty());
        let victim = &stood[which % stood.len()];
        let mut copy = state(&history, there, 5_000);
        match kind {
            0 => copy.retain(|row| row.key != victim.key),
            1 => copy.iter_mut().filter(|row| row.key == victim.key).for_each(|row| row.digest = "other".into()),
            _ => copy.push(Keyed { key: vec!["99".into()], ..victim.clone() }),
        }
        let (first, copy, after) = (look(old), look(copy), look(new));
        let once = judge(&first, &copy, &after, &Strays::new());
        let twice = judge(&after, &copy, &after, &once.stray);
        prop_assert_eq!(twice.wrong.len(), 1);
    }
}

#[test]
fn a_row_that_only_the_subscriber_has_is_wrong_once_it_stayed() {
    let row = Keyed { key: vec!["1".into()], born: 7, touched: false, digest: "d".into() };
    let (empty, copy) = (look(Vec::new()), look(vec![row.clone()]));
    let first = judge(&empty, &copy, &empty, &Strays::new());
    assert!(first.wrong.is_empty() && first.open == 1);
    assert_eq!(judge(&empty, &copy, &empty, &first.stray).wrong, [(row.key.clone(), Kind::Extra)]);
    let busy = Look { busy: true, ..empty.clone() };
    assert!(judge(&busy, &copy, &empty, &first.stray).wrong.is_empty(), "its writer may be committing");
    let written_anew = look(vec![Keyed { born: 8, ..row }]);
    assert!(judge(&empty, &written_anew, &empty, &first.stray).wrong.is_empty());
}
