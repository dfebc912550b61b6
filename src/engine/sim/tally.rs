//! What a simulation went through: which faults were injected, which states were reached, how runs ended.

use std::collections::BTreeMap;

macro_rules! faults {
    ($($name:ident = $word:literal),+ $(,)?) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault { $($name),+ }

        impl Fault {
            pub const ALL: &[Fault] = &[$(Fault::$name),+];
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }
        }
    };
}

faults! {
    CrashAnywhere = "crash: at any instant",
    CrashBeforeAppend = "crash: before an append",
    CrashAfterAppend = "crash: after an append",
    CrashAfterIntent = "crash: after the intent, before the effect",
    CrashInEffect = "crash: in the middle of an effect",
    CrashAfterEffect = "crash: after the effect, before its record",
    CrashInUndo = "crash: while undoing",
    Interrupt = "Ctrl-C",
    FreezeShort = "freeze: shorter than a lease",
    FreezeLong = "freeze: longer than a lease",
    FreezeAtIntent = "freeze: after the intent, to the lease's end",
    ClockForward = "wall clock: forward",
    ClockBack = "wall clock: back",
    StoreDown = "journal: unreachable for all",
    Partition = "journal: unreachable for one node",
    DiskFull = "journal: disk full",
    AppendFails = "journal: an append fails",
    RequestLate = "journal: a request arrives late",
    AnswerLost = "journal: an answer is lost",
    AnswerLate = "journal: an answer is late",
    Refused = "effect: refused",
    Throttled = "effect: throttled",
    Unreachable = "effect: nothing listens",
    Lost = "effect: lost on the way",
    EffectAnswerLost = "effect: done, answer lost",
    Late = "effect: lands after its sender gave up",
    Slow = "effect: accepted, completes later",
    Blind = "look: nothing to be seen",
    WorldDown = "world: unreachable for a while",
    NotYet = "prepare: refused for now",
    UndoFails = "undo: fails",
    Pause = "command: pause",
    Abort = "command: abort",
    Skip = "command: skip",
    Retry = "command: retry",
    Approve = "command: approve, unasked or twice",
    LateApproval = "command: approve, too late",
    WrongResolve = "command: resolve what is not open",
    Reject = "command: reject",
    Resume = "command: resume what is owned",
    Seize = "command: seize, the owner dead",
    SeizeAlive = "command: seize, the owner alive",
}

#[derive(Default)]
pub struct Tally {
    pub faults: BTreeMap<Fault, u64>,
    /// Phases, statuses, undo states, parks, ends, errors.
    pub states: BTreeMap<(&'static str, String), u64>,
    pub records: u64,
    pub effects: u64,
    pub checks: u64,
}

impl Tally {
    pub fn saw(&mut self, kind: &'static str, what: impl Into<String>) {
        *self.states.entry((kind, what.into())).or_default() += 1;
    }

    pub fn add(&mut self, other: &Self) {
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        for (state, count) in &other.states {
            *self.states.entry(state.clone()).or_default() += count;
        }
        self.records += other.records;
        self.effects += other.effects;
        self.checks += other.checks;
    }

    pub fn print(&self) {
        println!("{} records, {} effects, {} checks of invariants", self.records, self.effects, self.checks);
        println!("\nfaults injected ({} in all)", self.faults.values().sum::<u64>());
        for fault in Fault::ALL {
            println!("  {:>9}  {}", self.faults.get(fault).copied().unwrap_or(0), fault.word());
        }
        let mut last = "";
        for ((kind, what), count) in &self.states {
            if *kind != last {
                println!("\n{kind}");
                last = kind;
            }
            println!("  {count:>9}  {what}");
        }
    }
}
