//! Delays that were put in are found where they were put, and losses are those that were made.

use super::*;
use proptest::prelude::*;

const OLD: &str = "127.0.0.2";
const NEW: &str = "127.0.0.3";

fn ms(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap()
}

fn sample(seq: u64, sent: i64, took: i64, good: bool, address: &str) -> ProbeSample {
    ProbeSample { seq, sent: ms(sent), done: ms(sent + took), good, address: address.parse().ok(), why_bad: None, id: None }
}

/// Delays of a recovery, part by part, and the samples that a client would have seen.
#[derive(Clone, Debug)]
struct Story {
    parts: [i64; 5],
    good: u32,
    samples: Vec<ProbeSample>,
    resolvers: Vec<ResolverSample>,
    instants: [i64; 6],
}

fn story(parts: [i64; 5], steady: i64, good: u32, missed: i64) -> Story {
    let mut samples = Vec::new();
    let mut seq = 0..;
    let mut push = |sent: i64, took: i64, good: bool, address: &str| samples.push(sample(seq.next().unwrap(), sent, took, good, address));
    for n in 0..steady {
        push(n * 100, 20, true, OLD);
    }
    let t0 = (steady - 1) * 100 + 20;
    // The bad probes end in such a way that the last of those that are needed is missed just at T1.
    let t1 = t0 + parts[0];
    for n in 0..missed {
        push(t0 + 1 + n, parts[0] - 1 - n, false, OLD);
    }
    let (t2, t3) = (t1 + parts[1], t1 + parts[1] + parts[2]);
    push(t1 + 1, 1, false, OLD);
    // A lone good answer of the old region, and one of the new that is not followed by others.
    push(t1 + 3, 1, true, OLD);
    push(t1 + 4, 1, false, OLD);
    let (t4, t5) = (t3 + parts[3], t3 + parts[3] + parts[4]);
    if good > 1 {
        push(t5 - 9, 1, true, NEW);
        push(t5 - 8, 1, false, NEW);
    }
    for n in 0..i64::from(good) {
        // Later ones may be answered sooner than the first.
        push(t5 - 5 + n, if n == 0 { 5 } else { 2 }, true, NEW);
    }
    let resolvers = vec![
        // From before the change was sent, so not its effect.
        ResolverSample { at: ms(t2 - 1), resolver: "c".to_owned(), addresses: vec![NEW.parse().unwrap()] },
        ResolverSample { at: ms(0), resolver: "a".to_owned(), addresses: vec![OLD.parse().unwrap()] },
        ResolverSample { at: ms(t4 + 7), resolver: "b".to_owned(), addresses: vec![NEW.parse().unwrap()] },
        ResolverSample { at: ms(t4), resolver: "a".to_owned(), addresses: vec![NEW.parse().unwrap()] },
    ];
    Story { parts, good, samples, resolvers, instants: [t0, t1, t2, t3, t4, t5] }
}

fn fold(story: &Story) -> Instants {
    let [t0, t1, t2, t3, ..] = story.instants.map(ms);
    instants(&Recovery {
        samples: &story.samples,
        resolvers: &story.resolvers,
        fault: t0.checked_add(jiff::SignedDuration::from_micros(300)).ok(),
        detected: Some(t1),
        first_applying: Some(t2),
        traffic_sent: Some(t2),
        traffic_applied: Some(t3),
        target: NEW.parse().ok(),
        good: story.good,
    })
}

fn a_story() -> impl Strategy<Value = Story> {
    (20i64..5_000, 0i64..900, 20i64..9_000, 0i64..3_000, 20i64..2_000, 1i64..30, 1u32..6, 1i64..6)
        .prop_map(|(a, b, c, d, e, steady, good, missed)| story([a, b, c, d, e], steady, good, missed))
}

proptest! {
    #[test]
    fn each_delay_is_found_in_its_part(story in a_story()) {
        let rto = rto(&fold(&story), Some(Span::from_ms(1_000)), false);
        let p = &rto.parts_ms;
        prop_assert_eq!([p.detect, p.decide, p.act, p.propagate, p.verify], story.parts.map(Some));
        let total = u64::try_from(story.parts.iter().sum::<i64>()).unwrap();
        prop_assert_eq!(rto.actual_ms, Some(total));
        prop_assert_eq!(rto.met, Some(total <= 1_000));
    }

    #[test]
    fn the_order_of_completion_does_not_matter(story in a_story().prop_flat_map(|s| (Just(s.clone()), Just(s.samples).prop_shuffle()))) {
        let (story, samples) = story;
        prop_assert_eq!(fold(&Story { samples, ..story.clone() }), fold(&story));
    }

    #[test]
    fn a_missing_instant_or_a_hole_leaves_every_figure_null(story in a_story(), missing in 0usize..6) {
        let mut instants = fold(&story);
        prop_assert_eq!(rto(&instants, None, true), Rto::default());
        let field = [&mut instants.last_good, &mut instants.detected, &mut instants.first_applying, &mut instants.traffic_applied, &mut instants.resolver_moved, &mut instants.recovered];
        *field.into_iter().nth(missing).unwrap() = None;
        let objective_ms = Some(60_000);
        prop_assert_eq!(rto(&instants, Some(Span::from_ms(60_000)), false), Rto { objective_ms, ..Rto::default() });
    }

    #[test]
    fn parts_add_up_whatever_the_fractions(nanos in prop::array::uniform6(0i64..2_000_000_000)) {
        let mut nanos = nanos;
        nanos.sort_unstable();
        let at = nanos.map(|n| ms(0).checked_add(jiff::SignedDuration::from_nanos(n)).ok());
        let [last_good, detected, first_applying, traffic_applied, resolver_moved, recovered] = at;
        let rto = rto(&Instants { last_good, detected, first_applying, traffic_applied, resolver_moved, recovered, ..Instants::default() }, None, false);
        let p = &rto.parts_ms;
        let sum: i64 = [p.detect, p.decide, p.act, p.propagate, p.verify].into_iter().map(Option::unwrap).sum();
        prop_assert_eq!(rto.actual_ms, u64::try_from(sum).ok());
    }

    #[test]
    fn lost_and_present_make_up_the_acknowledged(writes in prop::collection::vec((0i64..60_000, any::<bool>()), 0..200), strangers in 0usize..5) {
        let ledger: Vec<_> = writes.iter().enumerate().map(|(n, (at, _))| LedgerEntry { id: format!("w{n}"), sent: ms(*at - 5), acked: ms(*at) }).collect();
        let mut present: BTreeSet<String> = writes.iter().enumerate().filter(|(_, w)| w.1).map(|(n, _)| format!("w{n}")).collect();
        let found = present.len() as u64;
        present.extend((0..strangers).map(|n| format!("stranger{n}")));
        let rpo = rpo(Some(Span::from_secs(5)), Some(&ledger), Some(&present), Some(ms(60_000)));
        prop_assert_eq!(rpo.acknowledged_writes, Some(writes.len() as u64));
        prop_assert_eq!(rpo.lost_writes.unwrap() + found, rpo.acknowledged_writes.unwrap());
        let oldest = writes.iter().filter(|w| !w.1).map(|w| w.0).min();
        prop_assert_eq!(rpo.actual_ms, Some(oldest.map_or(0, |at| u64::try_from(60_000 - at).unwrap())));
        prop_assert_eq!(rpo.met, Some(oldest.is_none_or(|at| at >= 55_000)));
    }

    #[test]
    fn the_detector_sees_an_outage_in_any_order_of_completion(
        order in Just((0u64..40).collect::<Vec<_>>()).prop_shuffle(), bad in prop::collection::vec(any::<bool>(), 40), need in 1u32..6,
    ) {
        let mut detector = Detector::new(need);
        let mut verdicts = 0;
        for (n, seq) in order.iter().enumerate() {
            let took = i64::try_from(n).unwrap() + 1_000 - i64::try_from(*seq).unwrap();
            let fed = detector.feed(&sample(*seq, i64::try_from(*seq).unwrap(), took, !bad[usize::try_from(*seq).unwrap()], OLD));
            verdicts += u32::from(fed.is_some());
        }
        let longest = bad.split(|b| !b).map(<[bool]>::len).max().unwrap();
        prop_assert_eq!(verdicts, u32::from(longest >= need as usize));
        prop_assert_eq!(detector.verdict().is_some(), verdicts == 1);
    }
}

#[test]
fn what_was_not_measured_is_null() {
    let entry = LedgerEntry { id: "a".to_owned(), sent: ms(0), acked: ms(1) };
    let ledger = std::slice::from_ref(&entry);
    assert_eq!(rpo(None, None, Some(&BTreeSet::new()), None), Rpo::default());
    let unread = rpo(None, Some(ledger), None, Some(ms(5)));
    assert_eq!((unread.acknowledged_writes, unread.lost_writes, unread.actual_ms), (Some(1), None, None));
    let no_moment = rpo(Some(Span::from_secs(1)), Some(ledger), Some(&BTreeSet::new()), None);
    assert_eq!((no_moment.lost_writes, no_moment.actual_ms, no_moment.met), (Some(1), None, None));
}

#[test]
fn a_lost_write_never_counts_as_none() {
    let entry = LedgerEntry { id: "a".to_owned(), sent: ms(10), acked: ms(11) };
    let rpo = rpo(Some(Span::from_ms(0)), Some(&[entry]), Some(&BTreeSet::new()), Some(ms(5)));
    assert_eq!((rpo.lost_writes, rpo.actual_ms, rpo.met), (Some(1), Some(1), Some(false)));
}

#[test]
fn the_detector_waits_for_a_probe_still_under_way() {
    let mut detector = Detector::new(3);
    assert_eq!(detector.feed(&sample(0, 0, 20, true, OLD)), None);
    assert_eq!(detector.feed(&sample(1, 100, 1, false, OLD)), None);
    assert_eq!(detector.feed(&sample(3, 300, 1, false, OLD)), None);
    assert_eq!(detector.feed(&sample(4, 400, 1, false, OLD)), None);
    let verdict = detector.feed(&sample(2, 200, 1_000, false, OLD)).unwrap();
    assert_eq!(verdict, Lost { at: ms(1_200), missed: 4, last_good: Some(ms(20)) });
    assert_eq!(detector.feed(&sample(5, 500, 1_000, false, OLD)), None, "the verdict is given once");
}

#[test]
fn a_fault_that_shows_late_is_no_recovery_before_it_shows() {
    let mut samples: Vec<_> = (0..10).map(|n| sample(n, i64::try_from(n).unwrap() * 100, 20, true, OLD)).collect();
    samples.extend((10..13).map(|n| sample(n, i64::try_from(n).unwrap() * 100, 1, false, OLD)));
    samples.extend((13..16).map(|n| sample(n, i64::try_from(n).unwrap() * 100, 20, true, OLD)));
    let found = instants(&Recovery { samples: &samples, fault: Some(ms(450)), detected: Some(ms(1_201)), good: 3, ..Recovery::default() });
    assert_eq!((found.last_good, found.recovered), (Some(ms(920)), Some(ms(1_320))));
    assert_eq!(found.resolver_moved, None);
}

#[test]
fn the_longest_pause_counts_the_edges() {
    let samples = [sample(0, 0, 10, true, OLD), sample(1, 100, 10, false, OLD), sample(2, 200, 10, true, OLD)];
    assert_eq!(longest_pause(&samples, ms(0), ms(230)), Some(Span::from_ms(200)));
    assert_eq!(longest_pause(&samples, ms(0), ms(900)), Some(Span::from_ms(690)));
    assert_eq!(longest_pause(&samples, ms(300), ms(900)), None);
}
