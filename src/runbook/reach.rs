//! Rule 7, held against a compiled plan: what a failover needs to be up, what it may not need, which of it is waived, and
//! whether its traffic goes through a control plane or through the data plane alone.

use super::diagnostic::Diagnostic;
use crate::model::{
    effect::{Effect, Place, Plane, Site},
    ids::{RegionName, StepId},
    node::Pos,
    plan::{Plan, PlanStep, StepKind},
    runbook::{Mode, OnFailure, Rule, Waiver},
};
use serde::Serialize;
use std::collections::BTreeSet;

type Found = Vec<Diagnostic>;

const FAILED_REGION: &str = "needs-failed-region";
const GLOBAL_CONTROL_PLANE: &str = "needs-global-control-plane";
const LEFT_BEHIND: &str = "left-behind";

/// Rule 7: an unplanned failover needs nothing in the failed region (the input `from`) and no global
/// control plane, unless a waiver says so. A step whose failure is let pass only earns a warning.
#[must_use]
pub fn lint_reach(plan: &Plan) -> Found {
    let mut found = Vec::new();
    if plan.mode != Some(Mode::Failover) {
        return found;
    }
    let lost = plan.lost();
    let waived = |rule: Rule| plan.waive.iter().any(|waiver| waiver.rule == rule);
    for step in &plan.steps {
        let mut told = BTreeSet::new();
        for reach in &step.reach {
            let plane = match reach.plane {
                Plane::Control => "control plane",
                Plane::Data => "data plane",
            };
            let made = match &reach.place {
                Place::Region(region) if Some(region) == lost.as_ref() && !waived(Rule::FailedRegion) => {
                    needs_lost(plan, step, plane, region)
                }
                Place::Each(sites) => match lost.as_ref().map(|lost| (lost, behind(sites, lost))) {
                    None | Some((_, Behind::None)) => continue,
                    Some((lost, Behind::All)) if !waived(Rule::FailedRegion) => needs_lost(plan, step, plane, lost),
                    Some((_, Behind::All)) => continue,
                    Some((lost, Behind::Some(servers))) => left_behind(plan, step, lost, &servers),
                },
                Place::Global if reach.plane == Plane::Control && !waived(Rule::GlobalControlPlane) => {
                    let message =
                        format!("step `{}` (`{}`) needs a global control plane, which may be down too", step.id, step.kind.uses());
                    let help = "use a path through the data plane (`dns.standby_takes_over`), or waive it: `waive: [{ rule: global-control-plane, reason: ... }]`, or once with `--waive REASON`";
                    reach_error(plan, step.pos, GLOBAL_CONTROL_PLANE, message, help)
                }
                _ => continue,
            };
            if told.insert(made.message.clone()) {
                found.push(if step.on_failure == OnFailure::Continue { made.warning() } else { made });
            }
        }
    }
    found
}

fn needs_lost(plan: &Plan, step: &PlanStep, plane: &str, region: &RegionName) -> Diagnostic {
    let message = format!("step `{}` (`{}`) needs the {plane} of `{region}`, the region that is lost", step.id, step.kind.uses());
    let help =
        "take the step out of the failover, or waive it: `waive: [{ rule: failed-region, reason: ... }]`, or once with `--waive REASON`";
    reach_error(plan, step.pos, FAILED_REGION, message, help)
}

/// Which of several servers stand in the lost region.
enum Behind {
    None,
    All,
    Some(Vec<String>),
}

fn behind(sites: &[Site], lost: &RegionName) -> Behind {
    let servers: Vec<String> = sites.iter().filter(|site| site.region.as_ref() == Some(lost)).map(|site| site.server.clone()).collect();
    match servers.len() {
        0 => Behind::None,
        all if all == sites.len() => Behind::All,
        _ => Behind::Some(servers),
    }
}

/// No error: it is what several servers are for. But what is left behind has the old answer, and somebody must think of it.
fn left_behind(plan: &Plan, step: &PlanStep, lost: &RegionName, servers: &[String]) -> Diagnostic {
    let message = format!(
        "step `{}` (`{}`) leaves {} behind if it cannot be reached: it stands in `{lost}`, the region that is lost",
        step.id,
        step.kind.uses(),
        servers.join(", "),
    );
    let help = "when it is back it has the old answer: `readiness.check` tells, and the same step once more brings it in line";
    reach_error(plan, step.pos, LEFT_BEHIND, message, help).warning()
}

fn reach_error(plan: &Plan, pos: Pos, code: &'static str, message: String, help: &str) -> Diagnostic {
    Diagnostic { pos, ..Diagnostic::error(&plan.file, code, message) }.help(help)
}

/// Waives for this one run what the plan may not need, with the reason; which rules that were. It stands in the plan, and so
/// on the record. A plan that needs no waiver gets none.
pub fn waive(plan: &mut Plan, reason: &str) -> Vec<Rule> {
    let codes: BTreeSet<&str> = lint_reach(plan).iter().filter(|one| one.is_error()).map(|one| one.code).collect();
    let rules: Vec<Rule> = [(FAILED_REGION, Rule::FailedRegion), (GLOBAL_CONTROL_PLANE, Rule::GlobalControlPlane)]
        .into_iter()
        .filter(|(code, _)| codes.contains(code))
        .map(|(_, rule)| rule)
        .collect();
    plan.waive.extend(rules.iter().map(|rule| Waiver { rule: *rule, reason: reason.to_owned() }));
    rules
}

/// Which path a runbook takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Path {
    /// How its traffic moves: `control-plane`, `data-plane`, or `none` where it moves none.
    pub traffic: &'static str,
    /// The steps that move it.
    pub steps: Vec<StepId>,
    /// Steps that need a control plane which is one for all regions.
    pub global_control_plane: Vec<StepId>,
    /// Steps that need the control plane of a region, and of which.
    pub regional_control_plane: Vec<(StepId, RegionName)>,
}

#[must_use]
pub fn path(plan: &Plan) -> Path {
    let moves = |step: &&PlanStep| {
        let StepKind::Action { name, effect, .. } = &step.kind else { return false };
        *effect != Effect::Read && (name.starts_with("dns.") || name.starts_with("traffic."))
    };
    let global = |step: &PlanStep| step.reach.iter().any(|reach| reach.place == Place::Global && reach.plane == Plane::Control);
    let movers: Vec<&PlanStep> = plan.steps.iter().filter(moves).collect();
    let traffic = match movers.as_slice() {
        [] => "none",
        all if all.iter().any(|step| global(step)) => "control-plane",
        _ => "data-plane",
    };
    let regional = plan.steps.iter().flat_map(|step| {
        step.reach.iter().filter(|reach| reach.plane == Plane::Control).filter_map(|reach| match &reach.place {
            Place::Region(region) => Some((step.id.clone(), region.clone())),
            _ => None,
        })
    });
    Path {
        traffic,
        steps: movers.iter().map(|step| step.id.clone()).collect(),
        global_control_plane: plan.steps.iter().filter(|step| global(step)).map(|step| step.id.clone()).collect(),
        regional_control_plane: regional.collect(),
    }
}

impl Path {
    /// One sentence for people.
    #[must_use]
    pub fn told(&self) -> String {
        let names = |ids: &[StepId]| ids.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ");
        let traffic = match self.traffic {
            "none" => "no step moves traffic".to_owned(),
            "data-plane" => format!("traffic moves through the data plane alone ({})", names(&self.steps)),
            _ => format!("traffic moves through a control plane that is one for all regions ({})", names(&self.steps)),
        };
        let global = match self.global_control_plane.as_slice() {
            [] => "no step needs a global control plane".to_owned(),
            steps => format!("a global control plane is needed by {}", names(steps)),
        };
        let regional: Vec<String> = self.regional_control_plane.iter().map(|(step, region)| format!("`{step}` ({region})")).collect();
        let regional = if regional.is_empty() {
            "that of a region by none".to_owned()
        } else {
            format!("that of a region by {}", regional.join(", "))
        };
        format!("{traffic}; {global}, {regional}")
    }
}
