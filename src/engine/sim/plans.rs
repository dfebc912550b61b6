//! Random runbooks, already compiled: graphs of steps with every effect, policy, guard and limit there is.

use super::{dice::Dice, effect::NAME};
use crate::model::{effect::*, estate::Estate, ids::*, node::*, plan::*, runbook::*, time::Span};
use std::collections::BTreeMap;

pub fn plan(dice: &mut Dice, number: usize, resource: &str) -> Plan {
    let count = dice.range(1, 8) as usize;
    let scope = if dice.of_1000(150) { Scope::Drill } else { Scope::Live };
    Plan {
        runbook: RunbookName(format!("book{number}")),
        file: "random.yaml".into(),
        digest: format!("{:016x}", dice.next()),
        mode: None,
        scope,
        live: false,
        inputs: BTreeMap::from([("yes".to_owned(), true.into()), ("no".to_owned(), false.into())]),
        waive: Vec::new(),
        estate: Estate::default().into(),
        locks: vec![Resource(resource.to_owned())],
        steps: (0..count).map(|index| step(dice, index, resource)).collect(),
    }
}

fn step(dice: &mut Dice, index: usize, resource: &str) -> PlanStep {
    let (effect, visible) = dice.weighted(&[
        (10, (Effect::Read, true)),
        (18, (Effect::Repeatable, true)),
        (8, (Effect::Repeatable, false)),
        (34, (Effect::Observable, true)),
        (30, (Effect::OneShot, false)),
    ]);
    let approval = dice.of_1000(130);
    let asks = Approval {
        approvers: dice.range(1, 3) as u32,
        expires: Span::from_ms(dice.range(4_000, 60_000)),
        message: None,
        roles: Vec::new(),
        facts: std::collections::BTreeMap::new(),
    };
    let action = StepKind::Action { name: NAME.into(), version: 1, effect };
    // Mostly a chain with branches, sometimes side by side.
    let mut needs: Vec<usize> = (0..index).filter(|_| dice.of_1000(250)).collect();
    if index > 0 && needs.is_empty() && dice.of_1000(600) {
        needs.push(index - 1);
    }
    let before = needs.first().map(|need| format!("steps.s{need}.value > 300"));
    let when = match dice.range(0, 24) {
        0 => Some("inputs.no".to_owned()),
        1..4 => Some("inputs.yes".to_owned()),
        4 => before,
        _ => None,
    };
    PlanStep {
        approve: None,
        id: StepId(format!("s{index}")),
        kind: if approval { StepKind::Approval(asks) } else { action },
        needs: needs.into_iter().map(|need| StepId(format!("s{need}"))).collect(),
        with: with(dice, effect, visible, resource),
        when: when.filter(|_| !approval),
        retry: Retry {
            attempts: dice.range(1, 4) as u32,
            backoff: Span::from_ms(dice.range(100, 2_000)),
            max_backoff: Span::from_ms(dice.range(500, 5_000)),
        },
        timeout: Span::from_ms(dice.range(3_000, 20_000)),
        on_failure: dice.weighted(&[(35, OnFailure::Pause), (12, OnFailure::Stop), (13, OnFailure::Continue), (40, OnFailure::Undo)]),
        undo: dice.weighted(&[(80, UndoPolicy::Automatic), (10, UndoPolicy::Manual), (10, UndoPolicy::None)]),
        reach: Vec::new(),
        pos: Pos::default(),
    }
}

fn with(dice: &mut Dice, effect: Effect, visible: bool, resource: &str) -> Node {
    let think_ms = if dice.of_1000(300) { dice.range(1, 800) } else { 0 };
    let entry = |name: &str, node: Node| (Key { name: name.to_owned(), pos: Pos::default() }, node);
    let typed = |value: serde_json::Value| Node::typed(value);
    let text = NodeValue::Text { text: "{{ run.id }}".to_owned(), quoted: true };
    let entries = vec![
        entry("effect", typed(serde_json::to_value(effect).unwrap())),
        entry("visible", typed(visible.into())),
        entry("resource", typed(resource.into())),
        entry("think_ms", typed(think_ms.into())),
        entry("run", Node { pos: Pos::default(), value: text }),
    ];
    Node { pos: Pos::default(), value: NodeValue::Map(entries) }
}
