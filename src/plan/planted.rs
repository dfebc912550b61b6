//! Defects that the simulation plants, to show that it would find them. Outside of tests there are none: the
//! function below is then a constant, and what asks it is gone from the program.

/// A defect in the policy or in the loop that carries it out. Those of a store are planted in the simulated store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    EffectBeforeIntent,
    NoObservationAfterACrash,
    UnknownRetried,
    UndoTwice,
    UndoOnlyOfWhatSucceeded,
    UndoGivenUp,
    UndoWithoutEnd,
    ApprovalReplayed,
}

#[cfg(not(test))]
#[must_use]
pub(crate) const fn planted(_: Defect) -> bool {
    false
}

#[cfg(test)]
pub(crate) use tests::{plant, planted};

#[cfg(test)]
mod tests {
    use super::Defect;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Defect>> = const { Cell::new(None) };
    }

    /// Until the next call, on this thread alone: tests run beside each other.
    pub(crate) fn plant(defect: Option<Defect>) {
        PLANTED.set(defect);
    }

    pub(crate) fn planted(defect: Defect) -> bool {
        PLANTED.get() == Some(defect)
    }
}
