//! LANGUAGE. What an operator writes, read with its places, checked before anything runs, and compiled.
//!
//! Pure: bytes and nouns in, nouns and diagnostics out; who reads the files is not this room's business.
//! In the order of use: [`parse`] (bytes to a tree), [`load`] (a tree to an estate, a runbook, a drill),
//! [`lint`] (what is wrong with it, with the catalogue of actions at hand), [`compile`] (a plan for one
//! run). [`expr`] is the one language of expressions, [`schema`] describes the files to editors, and
//! every complaint is a [`diagnostic::Diagnostic`].

pub mod compile;
pub mod diagnostic;
pub mod expr;
pub mod lint;
mod lint_dns;
mod lint_estate;
mod lint_people;
mod lint_postgres;
mod lint_schema;
pub mod load;
pub mod parse;
pub mod reach;
pub mod schema;
#[cfg(test)]
mod tests;
