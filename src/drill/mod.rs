//! MEASURE. One drill from start to verdict, seen from outside the regions that it plays with.
//!
//! [`conduct`] goes through the phases and journals each before it acts; [`state`] is the fold of those
//! events, so that any process can go on. [`probe`] is the client that asks on a fixed cadence,
//! [`probe_ledger`] keeps what was acknowledged to it, [`probe_watch`] notes what resolvers answer.
//! [`as_found`] tells whether the estate was left as it was found. What the figures are, and what the
//! verdict is, is decided in `plan::measure` and `plan::verdict`; [`report`] draws them.

pub mod as_found;
pub mod conduct;
mod figures;
mod preempted;
pub mod probe;
pub mod probe_ledger;
pub mod probe_watch;
pub mod report;
mod report_chart;
mod restore;
pub mod state;
pub mod summary;
