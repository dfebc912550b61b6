//! Muster: disaster recovery orchestration. Runbooks as code, drills against a real loss, recovery that is
//! measured, evidence that holds.
//!
//! This is the map. `docs/architecture.md` has the reasons; `docs/runbooks.md`, `docs/drills.md`,
//! `docs/actions.md` and `docs/operations.md` what people write and meet.
//!
//! # The rules, in short
//! 1. Write before acting, look before repeating: an effect is preceded by a durable intent; after a crash the
//!    world is observed before anything is done again.
//! 2. One hand on the wheel: one owner a run, one run a resource, and the store refuses who was deposed.
//! 3. Fence before promote: evidence, never silence.
//! 4. Measured, never estimated: what was not measured is `None`, never zero.
//! 5. A drill is the real runbook: its scope changes guards, not steps.
//! 6. The journal is the evidence, and an override never becomes a success.
//! 7. Never depend on what may be down; the plan is checked against that before it runs.
//!
//! # The rooms, and the order to read them in
//! | room | is |
//! | --- | --- |
//! | [`model`] | the nouns: estate, runbook, drill, plan, event, status |
//! | [`runbook`] | the language: files to nouns, every complaint with its place, a plan for one run |
//! | [`plan`] | the decisions, pure: fold, decide, measure, verdict, schedule |
//! | [`journal`] | the memory: append-only chains of events, and who owns one |
//! | [`actions`] | the verbs: one file an action, the contract that all keep |
//! | [`repository`] | the backups: chunks, packs, snapshots; what is kept, proven and let go |
//! | [`providers`] | the world behind small ports, and a simulated one beside it |
//! | [`engine`] | the hands: one loop carries out one decision after another |
//! | [`drill`] | the measure: faults, probe, ledger, phases, report |
//! | [`service`] | the door: the use cases, the scheduler, notices |
//! | [`cli`] | one file a command |
//! | `lab` | two regions in a box, for the demo and the tests |
//!
//! # The arrows
//! ```text
//! cli -> service -> drill -> engine -> actions -> repository -> providers (ports) -> model
//!                     |        |-> journal ----------------------------> model
//!                     |        '-> plan, runbook ----------------------> model
//!                     '-> journal, plan, providers (ports)
//! lab: beside, imported by cli and tests alone
//! ```
//! They go down only. `model` imports nothing of ours; `plan` and `runbook` import `model` alone; `actions` know
//! neither `engine` nor `journal`; only `providers` imports an SDK, and only its clock asks for the time or for
//! randomness. Facts flow back as [`model::event::Event`] values through the journal, and in no other way.
//!
//! # The life of a run
//! A file becomes a tree with places ([`runbook::parse`]), the tree a runbook ([`runbook::load`]), checked
//! ([`runbook::lint`]) and compiled ([`runbook::compile`]) into a [`model::plan::Plan`], which is the run's first
//! event: nothing is read from files again. The engine asks [`plan::decide`] what may be begun, appends the intent,
//! lets the action act, appends what came of it, and asks again. [`plan::state`] is the fold of the events; nothing
//! about a run lives anywhere else, so whoever claims it next goes on from the same place.
#![forbid(unsafe_code)]

pub mod actions;
pub mod cli;
pub mod drill;
pub mod engine;
pub mod journal;
#[cfg(feature = "lab")]
pub mod lab;
pub mod model;
pub mod plan;
pub mod providers;
pub mod repository;
pub mod runbook;
pub mod service;
