//! temp
use crate::model::node::Node;
use serde_json::Value;
use std::collections::BTreeMap;
pub struct Context;
#[derive(Debug)]
pub struct ExprError;
impl std::fmt::Display for ExprError {
    fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}
impl Context {
    pub fn new(_i: BTreeMap<String, Value>, _s: BTreeMap<String, Value>, _r: &str) -> Self {
        Context
    }
}
pub fn render(n: &Node, _c: &Context) -> Result<Node, ExprError> {
    Ok(n.clone())
}
pub fn truth(_e: &str, _c: &Context) -> Result<bool, ExprError> {
    Ok(true)
}
