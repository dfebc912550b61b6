//! temp
pub mod expr;
