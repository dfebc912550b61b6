//! The language: what stands between a file and a plan that can run.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use muster::actions::Known;
use muster::model::plan::Scope;
use muster::runbook::{compile::compile, lint::check_runbook, load};
use std::collections::BTreeMap;
use support::*;

fn main() {
    let estate = load::load_estate("muster.yaml", &shipped("muster.yaml")).expect("reads").estate;
    let file = "runbooks/regional-failover.yaml";
    let bytes = shipped(file);
    let inputs: BTreeMap<String, String> = [("from", "east"), ("to", "west")].map(|(n, v)| (n.to_owned(), v.to_owned())).into();
    measure(201, || load::load_runbook(file, &bytes).expect("reads")).print("parse and load regional-failover.yaml", 1);
    let book = load::load_runbook(file, &bytes).expect("reads");
    measure(101, || assert!(check_runbook(&book, Some(&estate), &Known).is_empty())).print("check it against estate and actions", 1);
    let whole = measure(101, || {
        let book = load::load_runbook(file, &bytes).expect("reads");
        compile(&book, &estate, &inputs, Scope::Live, false, &Known).expect("compiles")
    });
    whole.print("file to plan: parse, check, compile", 1);
}
