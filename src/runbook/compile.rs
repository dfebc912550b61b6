//! A runbook, an estate and inputs to a [`Plan`]: everything checked, every default filled in, so that
//! the run depends on no file any more.

use super::{
    diagnostic::Diagnostic,
    expr::{Context, render_partial},
    lint::{APPROVAL, check_runbook, typed_inputs},
    lint_schema::SchemaCheck,
    load::{LoadedRunbook, decode_diagnostic},
};
use crate::model::{
    catalogue::Catalogue,
    effect::Resource,
    estate::Estate,
    node::{Node, decode},
    plan::{Approval, Plan, PlanStep, Scope, StepKind},
    runbook::{OnFailure, Step, UndoPolicy},
};
use std::collections::{BTreeMap, BTreeSet};

type Found = Vec<Diagnostic>;

/// Compiles a runbook for one run. Warnings alone do not stop it.
pub fn compile(
    loaded: &LoadedRunbook,
    estate: &Estate,
    inputs: &BTreeMap<String, String>,
    scope: Scope,
    live: bool,
    catalogue: &dyn Catalogue,
) -> Result<Plan, Found> {
    let mut found: Found = check_runbook(loaded, Some(estate), catalogue);
    let (typed, faults) = typed_inputs(loaded, inputs, Some(estate));
    for fault in faults {
        // A wrong default has been told of, with its place.
        if fault.code != "wrong-input" || inputs.contains_key(&fault.name) {
            found.push(Diagnostic::error(&loaded.source.file, fault.code, fault.message).maybe_help(fault.help));
        }
    }
    if found.iter().any(Diagnostic::is_error) {
        return Err(found);
    }
    let context = Context::new(&typed);
    let mut compiler = Compiler { loaded, estate, scope, catalogue, context, found, locks: BTreeSet::new() };
    let steps: Vec<PlanStep> = loaded.runbook.steps.iter().filter_map(|step| compiler.step(step)).collect();
    let Compiler { found, locks, .. } = compiler;
    if found.iter().any(Diagnostic::is_error) {
        return Err(found);
    }
    Ok(Plan {
        runbook: loaded.runbook.runbook.clone(),
        file: loaded.source.file.clone(),
        digest: loaded.source.digest.clone(),
        mode: loaded.runbook.mode,
        scope,
        live,
        inputs: typed,
        waive: loaded.runbook.waive.clone(),
        estate: estate.clone().into(),
        locks: locks.into_iter().collect(),
        steps,
    })
}

struct Compiler<'a> {
    loaded: &'a LoadedRunbook,
    estate: &'a Estate,
    scope: Scope,
    catalogue: &'a dyn Catalogue,
    context: Context,
    found: Found,
    locks: BTreeSet<Resource>,
}

impl Compiler<'_> {
    fn step(&mut self, step: &Step) -> Option<PlanStep> {
        let with = self.rendered(&step.with)?;
        if step.uses == APPROVAL { self.approval(step, with) } else { self.action(step, with) }
    }

    /// With the inputs' values where their expressions stood.
    fn rendered(&mut self, node: &Node) -> Option<Node> {
        let rendered = render_partial(node, &self.context);
        rendered.map_err(|e| self.found.push(self.loaded.source.error(e.pos, "bad-expression", e.to_string()))).ok()
    }

    fn decoded(&mut self, node: &Node) -> Option<Approval> {
        let decoded = decode::<Approval>(node);
        decoded.map_err(|e| self.found.push(decode_diagnostic(&self.loaded.source, &e))).ok()
    }

    fn approval(&mut self, step: &Step, with: Node) -> Option<PlanStep> {
        let approval = self.decoded(&with)?;
        let timeout = step.timeout.unwrap_or(approval.expires);
        Some(self.made(step, StepKind::Approval(approval), with, timeout, UndoPolicy::None))
    }

    fn action(&mut self, step: &Step, with: Node) -> Option<PlanStep> {
        let info = self.catalogue.info(&step.uses)?;
        // Once more, now that the inputs' values stand where their expressions stood.
        let check = SchemaCheck { source: &self.loaded.source, root: &info.input, estate: Some(self.estate) };
        self.found.extend(check.check(&with));
        self.locks.extend(self.catalogue.locks(&step.uses, &with));
        let effect = self.catalogue.effect(&step.uses, &with);
        let reach = self.catalogue.reach(&step.uses, &with, self.estate);
        let kind = StepKind::Action { name: step.uses.clone(), version: info.version, effect };
        // Nothing is undone by an action that was given nothing to undo with, whatever the step asks for.
        let undo = match self.catalogue.undo(&step.uses, &with) {
            UndoPolicy::None => UndoPolicy::None,
            offered => step.undo.unwrap_or(offered),
        };
        let approve = match &step.approve {
            Some(node) => {
                let node = self.rendered(node)?;
                Some(self.decoded(&node)?)
            }
            None => None,
        };
        let made = self.made(step, kind, with, step.timeout.unwrap_or(info.timeout), undo);
        Some(PlanStep { reach, approve, ..made })
    }

    fn made(&self, step: &Step, kind: StepKind, with: Node, timeout: crate::model::time::Span, undo: UndoPolicy) -> PlanStep {
        let default = match self.scope {
            Scope::Live => OnFailure::Pause,
            Scope::Drill => OnFailure::Stop,
        };
        PlanStep {
            id: step.id.clone(),
            kind,
            needs: step.needs.clone(),
            with,
            when: step.when.clone(),
            retry: step.retry.clone(),
            timeout,
            on_failure: step.on_failure.unwrap_or(default),
            undo,
            reach: Vec::new(),
            approve: None,
            pos: step.pos,
        }
    }
}
