//! MEASURE. What is seen of a drill from outside both regions, and the page that says how it went.
//!
//! [`probe`] is the client that asks on a fixed cadence; [`probe_ledger`] keeps what was acknowledged to
//! it; [`probe_watch`] notes what clients' resolvers answer. What the figures are is decided in
//! `plan::measure`; [`report`] draws them.

pub mod probe;
pub mod probe_ledger;
pub mod probe_watch;
pub mod report;
mod report_chart;
