//! `exec.command`: run a program of the operator's own.
//!
//! **What it does.** Whatever the program does: Muster cannot know. It is given as a list of arguments and
//! never passes through a shell; it runs in a process group of its own, under a deadline, and the last of
//! its output is kept. It finds the run, the step and the step's key in `MUSTER_RUN`, `MUSTER_STEP` and
//! `MUSTER_KEY`, so that it can make itself repeatable.
//!
//! **Half-done** it may be in any way. A program that ends by itself with another code than 0 says that it
//! failed, and is believed. One that a deadline or a signal ended may have done its work: unknown. It also
//! outlives a Muster that is killed, so it inherits a locked descriptor, and whoever looks afterwards waits
//! until nobody holds the lock any more. Then `observe`, if given, tells: exit 0 it happened, 1 it did not,
//! anything else it cannot be told. Without `observe` a lost answer stays unknown and a person is asked.
//! Lock and output lie on the machine that began it. Looked at from another one, it may still be running
//! over there whatever is seen: then only "it happened" is believed, and a person is asked otherwise.
//!
//! With `read_only` it is a check of the operator's own: it says that it changes nothing, and is simply run
//! again, also to look afresh at a fact that an approval is bound to.
//!
//! **Undone** it is by the `undo` program, if given; nothing otherwise, and the record says so. A crash in the
//! middle, or a deadline or a signal that ends it, runs it again, unless `observe` says that nothing is left to
//! undo: so it must accept that it has been run before, even in part. A code other than 0 is its last word.

use super::{contract::*, shared::*};
use crate::model::{effect::*, estate::Estate, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::{port::*, process::this_machine};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// One look waits so long for the program to end; whoever looks then does other things before looking
/// again, such as heeding a pause.
const GLANCE: Duration = Duration::from_secs(1);
/// How long `observe` may take: less than the engine gives one look, so that it is ended and not left behind.
const OBSERVE: Duration = Duration::from_secs(50);

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The program and its arguments; no shell is involved.
    #[schemars(length(min = 1))]
    pub argv: Vec<String>,
    /// It only looks and changes nothing: a check, which may be made again at any time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Tells whether it happened: exit 0 yes, 1 no, anything else cannot tell. It must change nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observe: Option<Vec<String>>,
    /// Takes it back; must accept that it never happened, and that it has been run before, even in part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<Vec<String>>,
    /// Added to the environment. It is journaled: no secrets here.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// How many bytes of its output are kept, the last ones; at most 1 MiB.
    #[serde(default = "default_limit")]
    pub output_limit: u64,
}

fn default_limit() -> u64 {
    64 * 1024
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    spec: ProcessSpec,
    observe: Option<Vec<String>>,
    undo: Option<Vec<String>>,
    /// The machine that begins it.
    #[serde(default)]
    machine: Option<String>,
}

impl Intent {
    /// The other machine on which it was begun.
    fn elsewhere(&self) -> Option<&str> {
        self.machine.as_deref().filter(|machine| *machine != this_machine())
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// `null` when it was seen to have happened and its end was not.
    pub exit_code: Option<i32>,
    /// The last of its output; of `observe`'s when the program's own was lost.
    pub output: String,
}

pub struct Command;

impl Action for Command {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "exec.command",
            version: 1,
            summary: "Run a program, and find out what became of it after a crash",
            effect: Effect::OneShot,
            danger: Danger::Irreversible,
            undo: UndoPolicy::Automatic,
            timeout: Span::from_secs(600),
            example: "id: warm_up\nuses: exec.command\nwith:\n  argv: [systemctl, start, cache]\n  observe: [systemctl, is-active, --quiet, cache]\n  undo: [systemctl, stop, cache]\n",
        }
    }
    fn effect(with: &Node) -> Effect {
        let reads = match with.get("read_only").map(|node| &node.value) {
            Some(crate::model::node::NodeValue::Text { text, .. }) => text == "true",
            Some(crate::model::node::NodeValue::Typed(value)) => *value == true,
            _ => false,
        };
        if reads {
            return Effect::Read;
        }
        let given = match &with.value {
            crate::model::node::NodeValue::Typed(value) => value.get("observe").is_some_and(|v| !v.is_null()),
            _ => with.get("observe").is_some_and(|n| n.value != crate::model::node::NodeValue::Null),
        };
        if given { Effect::Observable } else { Effect::OneShot }
    }
    fn undo_policy(with: &Node) -> UndoPolicy {
        let given = match &with.value {
            crate::model::node::NodeValue::Typed(value) => value.get("undo").is_some_and(|v| !v.is_null()),
            _ => with.get("undo").is_some_and(|n| n.value != crate::model::node::NodeValue::Null),
        };
        if given { UndoPolicy::Automatic } else { UndoPolicy::None }
    }
    fn observes(with: &Node) -> bool {
        with.get("observe").is_some() && Self::effect(with) != Effect::Read
    }
    fn lands_within(_with: &Node) -> Duration {
        // A command that nobody waits for holds its lock: it is seen to be under way.
        Duration::ZERO
    }

    fn reach(_with: &Node, _estate: &Estate) -> Vec<Reach> {
        vec![reach_here()]
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        Vec::new()
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        for (field, argv) in [("argv", Some(&input.argv)), ("observe", input.observe.as_ref()), ("undo", input.undo.as_ref())] {
            if argv.is_some_and(|argv| argv.first().is_none_or(String::is_empty)) {
                return Err(Refusal::no("input", format!("`{field}` names no program")).remedy("give the program and its arguments as a list"));
            }
        }
        let what = change(input.argv.join(" "), None, Some("run".into()));
        let notes = match &input.observe {
            _ if input.read_only => vec!["a check: it says of itself that it changes nothing".to_owned()],
            Some(observe) => vec![format!("afterwards `{}` tells whether it happened", observe.join(" "))],
            None => vec!["without `observe`, a lost answer needs a person".to_owned()],
        };
        let spec = ProcessSpec {
            argv: input.argv,
            env: environment(cx, input.env),
            cwd: input.cwd,
            lock_file: Some(cx.scratch.join(format!("{}.lock", cx.key)).to_string_lossy().into_owned()),
            output_file: Some(cx.scratch.join(format!("{}.out", cx.key)).to_string_lossy().into_owned()),
            output_limit: input.output_limit.min(1024 * 1024),
            stdin: None,
        };
        Ok(Prepared { intent: Intent { spec, observe: input.observe, undo: input.undo, machine: Some(this_machine()) }, change: vec![what], notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let end = run(cx, &intent.spec).await?;
        Ok(Output { exit_code: end.code, output: end.output })
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        look(cx, intent, GLANCE).await
    }

    async fn undo(cx: &WriteCx, intent: &Intent, output: Option<Output>) -> Result<(), ApplyError> {
        let Some(undo) = &intent.undo else { return Ok(()) };
        // An undo, too, outlives a Muster that is killed: the next one waits for it, and looks at what it left.
        let lock = cx.scratch.join(format!("{}.undo", cx.key)).to_string_lossy().into_owned();
        if !cx.read.world.processes().wait_released(&lock, cx.deadline).await? {
            return Err(ApplyError::Retry { after: GLANCE, failure: Failure::new("running", "an earlier undo still runs") });
        }
        match look(cx, intent, cx.deadline).await {
            // The same, as far as anybody knows.
            Seen::CannotTell { why } if output.is_none() && intent.elsewhere().is_some() => return Err(fail("elsewhere", why)),
            // What still runs would do its work after it was taken back.
            Seen::Pending { note, .. } => return Err(ApplyError::Retry { after: GLANCE, failure: Failure::new("running", note) }),
            Seen::Absent => return Ok(()),
            _ => {}
        }
        run(cx, &ProcessSpec { lock_file: Some(lock), ..beside(&intent.spec, undo) }).await.map(|_| ())
    }
}

/// Waits so long for a program that outlived Muster, then asks `observe`.
async fn look(cx: &ReadCx, intent: &Intent, patience: Duration) -> Seen<Output> {
    let elsewhere = intent.elsewhere();
    if let Some(lock) = intent.spec.lock_file.as_ref().filter(|_| elsewhere.is_none()) {
        match cx.world.processes().wait_released(lock, patience.min(cx.deadline)).await {
            Ok(true) => {}
            Ok(false) => return pending(100, "the program, or a child of it, still runs"),
            Err(e) => return cannot_tell(&e),
        }
    }
    let still = |machine: &str| format!("it was begun on {machine}, and may still be running there: make sure there that it has ended");
    let Some(observe) = &intent.observe else {
        if let Some(machine) = elsewhere {
            return Seen::CannotTell { why: still(machine) };
        }
        return Seen::CannotTell { why: "no `observe` program was given, so nobody can tell whether it happened".into() };
    };
    match cx.world.processes().run(&beside(&intent.spec, observe), cx.deadline.min(OBSERVE)).await {
        Err(e) => cannot_tell(&e),
        Ok(end) => match end.code {
            Some(0) => Seen::Done(Output { exit_code: None, output: end.output }),
            Some(1) => match elsewhere {
                Some(machine) => Seen::CannotTell { why: format!("`{}` says that it has not happened; {}", observe.join(" "), still(machine)) },
                None => Seen::Absent,
            },
            _ => Seen::CannotTell { why: format!("`{}` {}", observe.join(" "), how(&end)) },
        },
    }
}

/// Runs it to its end and tells a definite failure from an unknown outcome.
async fn run(cx: &WriteCx, spec: &ProcessSpec) -> Result<ProcessEnd, ApplyError> {
    cx.world()?;
    let end = cx.read.world.processes().run(spec, cx.deadline).await?;
    let message = format!("`{}` {}", spec.argv.join(" "), how(&end));
    match end.code {
        Some(0) if !end.timed_out => Ok(end),
        Some(_) if !end.timed_out => Err(fail("exit", message)),
        _ => Err(ApplyError::Unknown(Failure::new(if end.timed_out { "timed_out" } else { "signal" }, message))),
    }
}

fn how(end: &ProcessEnd) -> String {
    let last = end.output.trim().lines().last().unwrap_or_default().to_owned();
    let last = if last.is_empty() { last } else { format!(": {last}") };
    match (end.timed_out, end.code, end.signal) {
        (true, ..) => "did not end before its deadline and was killed".to_owned() + &last,
        (_, Some(code), _) => format!("ended with exit code {code}{last}"),
        (_, None, Some(signal)) => format!("was ended by signal {signal}{last}"),
        _ => format!("ended in an unknown way{last}"),
    }
}

/// Another program in the same surroundings; it does not hold the lock that it may be asked about.
fn beside(spec: &ProcessSpec, argv: &[String]) -> ProcessSpec {
    ProcessSpec { argv: argv.to_vec(), lock_file: None, output_file: None, ..spec.clone() }
}

/// What every program that Muster starts for a step finds in its environment.
pub(crate) fn environment(cx: &ReadCx, mut env: BTreeMap<String, String>) -> BTreeMap<String, String> {
    env.insert("MUSTER_RUN".into(), cx.run.0.clone());
    env.insert("MUSTER_STEP".into(), cx.step.0.clone());
    env.insert("MUSTER_KEY".into(), cx.key.clone());
    env
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "argv": ["mark", "a"], "observe": ["marked", "a"], "undo": ["unmark", "a"] }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, Fixture};
    use serde_json::json;

    #[tokio::test]
    async fn its_end_decides_what_is_known() {
        let bench = Bench::new(&Fixture::new(json!({ "argv": ["exit", "3"] })));
        let failure = bench.failed::<Command>().await;
        assert_eq!((failure.code.as_str(), failure.message.as_str()), ("exit", "`exit 3` ended with exit code 3: said no"));
        let bench = Bench::new(&Fixture::new(json!({ "argv": ["hang"] })));
        let intent = bench.intent::<Command>().await;
        assert!(matches!(Command::apply(&bench.write, &intent).await, Err(ApplyError::Unknown(f)) if f.code == "timed_out"));
    }

    #[tokio::test]
    async fn what_still_runs_is_waited_for_and_then_a_person_is_asked() {
        let mut bench = Bench::new(&Fixture::new(json!({ "argv": ["hang"] })));
        let intent = bench.intent::<Command>().await;
        assert!(Command::apply(&bench.write, &intent).await.is_err());
        bench.read.deadline = Duration::from_secs(2);
        // It lives five seconds longer than Muster; each look waits for one.
        for _ in 0..4 {
            assert!(matches!(Command::observe(&bench.read, &intent).await, Seen::Pending { .. }));
        }
        bench.read.deadline = Duration::from_secs(30);
        assert!(matches!(look(&bench.read, &intent, bench.read.deadline).await, Seen::CannotTell { .. }));
    }

    #[tokio::test]
    async fn what_another_machine_began_is_not_taken_for_absent() {
        let bench = Bench::new(&Fixture::new(json!({ "argv": ["mark", "a"], "observe": ["marked", "a"], "undo": ["unmark", "a"] })));
        let mut intent = bench.intent::<Command>().await;
        assert!(matches!(Command::observe(&bench.read, &intent).await, Seen::Absent));
        let here = intent.machine.replace("elsewhere".to_owned());
        let seen = Command::observe(&bench.read, &intent).await;
        assert!(matches!(&seen, Seen::CannotTell { why } if why.contains("begun on elsewhere")), "{seen:?}");
        assert!(matches!(Command::undo(&bench.write, &intent, None).await, Err(ApplyError::Definite(f)) if f.code == "elsewhere"));
        intent.machine = here;
        Command::apply(&bench.write, &intent).await.unwrap();
        intent.machine = Some("elsewhere".to_owned());
        assert!(matches!(Command::observe(&bench.read, &intent).await, Seen::Done(_)), "that it happened is believed");
        Command::undo(&bench.write, &intent, None).await.unwrap();
        intent.observe = None;
        let seen = Command::observe(&bench.read, &intent).await;
        assert!(matches!(&seen, Seen::CannotTell { why } if why.contains("begun on elsewhere")), "{seen:?}");
    }

    #[tokio::test]
    async fn observe_may_be_unable_to_tell() {
        let bench = Bench::new(&Fixture::new(json!({ "argv": ["say", "x"], "observe": ["exit", "2"] })));
        assert_eq!(bench.failed::<Command>().await.code, "cannot_tell");
    }

    #[test]
    fn only_observe_makes_it_observable() {
        assert_eq!(Command::effect(&Node::typed(json!({ "argv": ["a"] }))), Effect::OneShot);
        assert_eq!(Command::effect(&Node::typed(json!({ "argv": ["a"], "observe": ["b"] }))), Effect::Observable);
    }

    #[tokio::test]
    async fn a_program_must_be_named() {
        for with in [json!({ "argv": [] }), json!({ "argv": ["a"], "undo": [] }), json!({ "argv": [""] })] {
            assert_eq!(Bench::new(&Fixture::new(with)).refused::<Command>().await, "input");
        }
    }
}
