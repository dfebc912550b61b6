//! The judgement over rows, against a model: a primary's history, a standby somewhere in it, and looks.

use super::*;
use proptest::prelude::*;

/// What one transaction does: adds a row, or replaces or removes the n-th that is there.
#[derive(Clone, Debug)]
enum Does {
    Insert,
    Update(usize),
    Delete(usize),
}

fn does() -> impl Strategy<Value = Does> {
    prop_oneof![3 => Just(Does::Insert), 2 => (0..20usize).prop_map(Does::Update), 1 => (0..20usize).prop_map(Does::Delete)]
}

fn row(line: u32, born: u32) -> Version {
    Version { block: line / 4, line: line % 4 + 1, born, touched: false, digest: format!("content {line}") }
}

/// The rows after the first `n` transactions; transaction `i` bears the number `100 + i`.
fn state(history: &[Does], n: usize) -> Vec<Version> {
    let mut rows: Vec<Version> = Vec::new();
    for (i, does) in history.iter().take(n).enumerate() {
        let born = 100 + i as u32;
        let gone = match does {
            Does::Insert => None,
            Does::Update(at) | Does::Delete(at) => (!rows.is_empty()).then(|| rows.remove(at % rows.len())),
        };
        if !matches!(does, Does::Delete(_)) && (gone.is_some() || matches!(does, Does::Insert)) {
            rows.push(row(i as u32, born));
        }
    }
    rows
}

fn look(seen: Vec<Version>, done: usize) -> Look<Version> {
    Look { at: Lsn(done as u64), horizon: 100 + done as u64, busy: false, shape: String::new(), seen }
}

/// The primary sees less than it has logged: the last `hidden` are committing. What they remove is touched.
fn hidden(history: &[Does], done: usize, hidden: usize) -> Look<Version> {
    let shown = done - hidden;
    let later = state(history, done);
    let mut seen = state(history, shown);
    for v in &mut seen {
        v.touched = !later.iter().any(|l| name(l) == name(v));
    }
    Look { busy: hidden > 0, ..look(seen, shown) }
}

proptest! {
    #[test]
    fn what_is_in_flight_is_never_a_difference(
        history in prop::collection::vec(does(), 1..60), a in 0..60usize, b in 0..20usize, c in 0..20usize, late in 0..4usize,
    ) {
        let before = a.min(history.len());
        let there = (before + b).min(history.len());
        let after = (there + c).min(history.len());
        // The second look at the primary may not yet show what the standby has; never less than the first did.
        let late = late.min(after - before);
        let judged = judge(
            &look(state(&history, before), before),
            &look(state(&history, there), there),
            &hidden(&history, after, late),
            &BTreeSet::new(),
        );
        prop_assert_eq!(judged.wrong, Vec::new());
    }

    #[test]
    fn a_difference_in_what_stood_still_is_always_found(
        history in prop::collection::vec(does(), 1..60), a in 0..60usize, b in 0..20usize, which in 0..60usize, kind in 0..3,
    ) {
        let before = a.min(history.len());
        let there = (before + b).min(history.len());
        let (old, new) = (state(&history, before), state(&history, there));
        let stood: Vec<Version> = old.iter().filter(|v| new.contains(v)).cloned().collect();
        prop_assume!(!stood.is_empty());
        let victim = &stood[which % stood.len()];
        let mut copy = new.clone();
        match kind {
            0 => copy.retain(|v| v != victim),
            1 => copy.iter_mut().filter(|v| *v == victim).for_each(|v| v.digest = "other".into()),
            _ => copy.push(Version { line: victim.line + 100, ..victim.clone() }),
        }
        let judged = judge(&look(old, before), &look(copy, there), &look(new, there), &BTreeSet::new());
        prop_assert_eq!(judged.wrong.len(), 1);
    }

    #[test]
    fn settled_rows_leave_nothing_open(history in prop::collection::vec(does(), 1..60)) {
        let all = look(state(&history, history.len()), history.len());
        prop_assert_eq!(judge(&all, &all, &all, &BTreeSet::new()), Judged::default());
    }
}

#[test]
fn a_stray_row_is_wrong_once_it_was_seen_twice() {
    // A long transaction holds the horizon back, so that birth alone tells nothing.
    let stray = row(1, 500);
    let primary = Look { horizon: 200, ..look(Vec::new(), 0) };
    let standby = look(vec![stray.clone()], 0);
    let first = judge(&primary, &standby, &primary, &BTreeSet::new());
    assert!(first.wrong.is_empty() && first.open.contains(&0), "{first:?}");
    let second = judge(&primary, &standby, &primary, &first.stray);
    assert_eq!(second.wrong, [((0, 2, 500), Kind::Extra)]);
    let busy = Look { busy: true, ..primary.clone() };
    assert!(judge(&busy, &standby, &primary, &first.stray).wrong.is_empty(), "its writer may be committing");
}

#[test]
fn what_a_committing_transaction_removed_is_looked_at_again() {
    let (plain, touched) = (row(1, 100), Version { touched: true, ..row(1, 100) });
    let (before, nothing) = (look(vec![plain.clone()], 1), look(Vec::new(), 1));
    let after = |v: &Version, busy| Look { busy, ..look(vec![v.clone()], 1) };
    let judge = |after| judge(&before, &nothing, &after, &BTreeSet::new());
    assert_eq!(judge(after(&touched, true)).open, BTreeSet::from([0]));
    assert!(judge(after(&touched, true)).wrong.is_empty());
    assert_eq!(judge(after(&plain, true)).wrong.len(), 1, "nobody has touched it");
    assert_eq!(judge(after(&touched, false)).wrong.len(), 1, "a lock, or a removal that was given up");
}

#[test]
fn numbers_of_transactions_wrap_around() {
    assert!(surely_before(5, 6) && !surely_before(6, 6) && !surely_before(7, 6));
    assert!(surely_before(u32::MAX, (1 << 32) + 3), "just before the wrap");
    assert!(!surely_before(10, u64::from(u32::MAX)), "just after it");
    assert!(surely_before(2, 6), "frozen");
}

#[test]
fn a_stretch_is_doubtful_when_no_two_looks_agree() {
    let look = |sums: &[(u32, &str)]| {
        let seen = sums.iter().map(|(number, sum)| Stretch { number: *number, rows: 2, sum: (*sum).into() }).collect();
        Look { at: Lsn(0), horizon: 0, busy: false, shape: String::new(), seen }
    };
    let before = look(&[(0, "a"), (1, "b"), (2, "c")]);
    let there = look(&[(0, "a"), (1, "B"), (2, "x"), (4, "new")]);
    let after = look(&[(0, "A"), (1, "B"), (2, "c"), (3, "new")]);
    assert_eq!(doubtful(&before, &there, &after), [(2, 2), (4, 2)]);
}
