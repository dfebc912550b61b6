//! A drill's verdict, from what was measured. Pure, so that every way to fail has a line of its own.

use crate::model::{objective::*, status::RunStatus};

/// What a verdict is given over.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// How the drilled runbook ended, if it ran, and why.
    pub main: Option<(RunStatus, Option<String>)>,
    pub rto: Rto,
    pub rpo: Rpo,
    /// A restore: both figures are what it is for, and come from the record, without probe or ledger.
    pub restore: bool,
    /// Was the recovery time to be measured? The data loss?
    pub probed: bool,
    pub ledgered: bool,
    /// Another process picked the drill up; what was measured meanwhile is lost.
    pub hole: bool,
    /// How the runbook that leaves the estate as it was found ended; `None` inside when it never ran.
    pub then: Option<Option<RunStatus>>,
    /// Acknowledged writes that the planned way back lost.
    pub then_lost: Option<u64>,
    pub as_found: Option<bool>,
    /// Writes that the fenced region acknowledged after it came back.
    pub stray_writes: Option<u64>,
}

/// The verdict, and a sentence for each reason that it is not a pass.
#[must_use]
pub fn verdict(facts: &Facts) -> (Verdict, Vec<String>) {
    let failures = failures(facts);
    let gaps = gaps(facts);
    let verdict = match (failures.is_empty(), gaps.is_empty()) {
        (false, _) => Verdict::Fail,
        (true, false) => Verdict::Inconclusive,
        (true, true) => Verdict::Pass,
    };
    (verdict, failures.into_iter().chain(gaps).collect())
}

fn failures(facts: &Facts) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some((status, why)) = &facts.main
        && *status != RunStatus::Succeeded
    {
        let why = why.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        reasons.push(format!("the runbook ended {}{why}", status.word()));
    }
    if facts.rto.met == Some(false) {
        reasons.push(missed("recovery took", facts.rto.actual_ms, facts.rto.objective_ms));
    }
    if facts.rpo.met == Some(false) {
        let what = match (facts.restore, facts.rpo.upper_bound) {
            (true, Some(false)) => "the newest commit that came back was older than the primary's newest by",
            (true, _) => "the age of the recovered point at the moment of loss was",
            (false, _) => "the oldest lost write was",
        };
        reasons.push(missed(what, facts.rpo.actual_ms, facts.rpo.objective_ms));
    }
    if let Some(Some(status)) = facts.then
        && status != RunStatus::Succeeded
    {
        reasons.push(format!("the way back ended {}", status.word()));
    }
    if let Some(lost @ 1..) = facts.then_lost {
        reasons.push(format!("the planned way back lost {lost} acknowledged writes"));
    }
    if facts.as_found == Some(false) {
        reasons.push("the estate was not left as it was found".to_owned());
    }
    if let Some(stray @ 1..) = facts.stray_writes {
        reasons.push(format!("the fenced region acknowledged {stray} writes after it came back"));
    }
    reasons
}

fn missed(what: &str, actual: Option<u64>, objective: Option<u64>) -> String {
    let ms = |value: Option<u64>| value.map_or("?".to_owned(), |ms| format!("{ms} ms"));
    format!("{what} {}, the objective is {}", ms(actual), ms(objective))
}

fn gaps(facts: &Facts) -> Vec<String> {
    let mut reasons = Vec::new();
    if facts.hole && (facts.probed || facts.ledgered || facts.restore) {
        reasons.push("Muster was restarted meanwhile; figures that span the gap were not measured".to_owned());
    }
    if facts.main.is_none() {
        reasons.push("the runbook never ran".to_owned());
    }
    // An objective that nothing measures is no objective met.
    if (facts.probed || facts.restore || facts.rto.objective_ms.is_some()) && facts.rto.actual_ms.is_none() {
        reasons.push("the recovery time was not measured".to_owned());
    }
    if (facts.ledgered || facts.restore || facts.rpo.objective_ms.is_some()) && facts.rpo.actual_ms.is_none() {
        reasons.push("the data loss was not measured".to_owned());
    }
    if facts.then == Some(None) {
        reasons.push("the way back never ran".to_owned());
    }
    if facts.then.is_some() && facts.as_found.is_none() {
        reasons.push("whether the estate was left as it was found is not known".to_owned());
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            main: Some((RunStatus::Succeeded, None)),
            rto: Rto { objective_ms: Some(60_000), actual_ms: Some(3_000), met: Some(true), ..Rto::default() },
            rpo: Rpo { objective_ms: Some(5_000), actual_ms: Some(0), met: Some(true), ..Rpo::default() },
            restore: false,
            probed: true,
            ledgered: true,
            then: Some(Some(RunStatus::Succeeded)),
            then_lost: Some(0),
            as_found: Some(true),
            stray_writes: Some(0),
            hole: false,
        }
    }

    #[test]
    fn a_pass_needs_everything() {
        assert_eq!(verdict(&good()), (Verdict::Pass, vec![]));
    }

    #[test]
    fn each_defect_fails_for_its_own_reason() {
        let cases: [(&str, fn(&mut Facts)); 7] = [
            ("golden", |f| f.main = Some((RunStatus::Failed, Some("golden differs".to_owned())))),
            ("recovery took 3000 ms", |f| f.rto.met = Some(false)),
            ("oldest lost write", |f| f.rpo.met = Some(false)),
            ("way back ended aborted", |f| f.then = Some(Some(RunStatus::Aborted))),
            ("lost 2", |f| f.then_lost = Some(2)),
            ("not left as it was found", |f| f.as_found = Some(false)),
            ("acknowledged 1 writes", |f| f.stray_writes = Some(1)),
        ];
        for (word, spoil) in cases {
            let mut facts = good();
            spoil(&mut facts);
            let (verdict, reasons) = verdict(&facts);
            assert_eq!(verdict, Verdict::Fail, "{word}");
            assert!(reasons.len() == 1 && reasons[0].contains(word), "{reasons:?} should speak of {word:?}");
        }
    }

    #[test]
    fn what_was_not_to_be_measured_is_not_missed() {
        let unwatched = Facts { probed: false, ledgered: false, rto: Rto::default(), rpo: Rpo::default(), ..good() };
        // Another process went on with it: no figure spans the gap.
        assert_eq!(verdict(&Facts { hole: true, ..unwatched.clone() }), (Verdict::Pass, vec![]));
        let objective = Rto { objective_ms: Some(60_000), ..Rto::default() };
        assert_eq!(verdict(&Facts { rto: objective, ..unwatched }).0, Verdict::Inconclusive);
    }

    #[test]
    fn a_restore_is_held_to_both_figures_without_probe_or_ledger() {
        let restore = Facts { restore: true, probed: false, ledgered: false, then: None, as_found: None, stray_writes: None, ..good() };
        assert_eq!(verdict(&restore), (Verdict::Pass, vec![]));
        for gap in [Facts { rto: Rto::default(), ..restore.clone() }, Facts { rpo: Rpo::default(), ..restore.clone() }] {
            assert_eq!(verdict(&gap).0, Verdict::Inconclusive, "{gap:?}");
        }
        let old = Rpo { met: Some(false), ..restore.rpo.clone() };
        for (upper_bound, word) in [(Some(true), "recovered point"), (Some(false), "older than the primary's newest")] {
            let (verdict, reasons) = verdict(&Facts { rpo: Rpo { upper_bound, ..old.clone() }, ..restore.clone() });
            assert!(verdict == Verdict::Fail && reasons[0].contains(word), "{reasons:?}");
        }
    }

    #[test]
    fn what_was_not_measured_is_no_pass() {
        let cases: [fn(&mut Facts); 6] = [
            |f| f.hole = true,
            |f| f.main = None,
            |f| f.rto = Rto::default(),
            |f| f.rpo = Rpo::default(),
            |f| f.then = Some(None),
            |f| f.as_found = None,
        ];
        for spoil in cases {
            let mut facts = good();
            spoil(&mut facts);
            assert_eq!(verdict(&facts).0, Verdict::Inconclusive);
        }
    }
}
