//! NOUNS. What every other room talks about: the estate, the runbook, the plan, the event.
//!
//! Plain values with `serde`; no I/O, no clock, no async, and nothing of ours is imported here.
//! Start with [`estate`] and [`runbook`] (what a person writes), go on to [`plan`] (what will be
//! executed) and [`event`] (what happened, and the evidence of it).

pub mod catalogue;
pub mod decode;
pub mod drill;
pub mod effect;
pub mod estate;
pub mod event;
pub mod ids;
pub mod measured;
pub mod node;
pub mod objective;
pub mod plan;
pub mod runbook;
pub mod signing;
pub mod status;
pub mod time;
