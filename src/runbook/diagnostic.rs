//! The one kind of diagnostic: what is wrong, in which file, line and column, the line itself, and what
//! would have been right. People read it as text in the manner of rustc, programs as JSON.

use crate::model::node::Pos;
use serde::Serialize;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
}

/// One finding in one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    pub severity: Severity,
    /// A stable word: `unknown-key`, `cycle`.
    pub code: &'static str,
    pub file: String,
    /// Line zero when the finding belongs to no line.
    #[serde(flatten)]
    pub pos: Pos,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line_text: Option<String>,
}

/// How much of a long line is shown on either side of the caret.
const WINDOW: usize = 100;

impl Diagnostic {
    /// A finding about a file as a whole, or about what came from no file.
    #[must_use]
    pub fn error(file: &str, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code,
            file: file.to_owned(),
            pos: Pos::default(),
            message: message.into(),
            help: None,
            line_text: None,
        }
    }
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
    #[must_use]
    pub fn maybe_help(mut self, help: Option<String>) -> Self {
        self.help = help.or(self.help);
        self
    }
    #[must_use]
    pub fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
    /// Places the finding, and keeps that line of the text.
    #[must_use]
    pub fn at(mut self, pos: Pos, text: &str) -> Self {
        self.pos = pos;
        let line = usize::try_from(pos.line).unwrap_or(0);
        self.line_text = line.checked_sub(1).and_then(|above| text.lines().nth(above)).map(ToOwned::to_owned);
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.is_error() { "error" } else { "warning" };
        write!(f, "{word}[{}]: {}", self.code, self.message)?;
        if self.pos.line == 0 {
            write!(f, "\n --> {}", self.file)?;
            return self.help.as_ref().map_or(Ok(()), |help| write!(f, "\n  = help: {help}"));
        }
        let number = self.pos.line.to_string();
        let pad = " ".repeat(number.len());
        write!(f, "\n{pad}--> {}:{}:{}", self.file, self.pos.line, self.pos.column)?;
        if let Some(line) = &self.line_text {
            let (shown, before, carets) = excerpt(line, self.pos.column);
            write!(f, "\n{pad} |\n{number} | {shown}\n{pad} | {}{}", " ".repeat(before), "^".repeat(carets))?;
        }
        self.help.as_ref().map_or(Ok(()), |help| write!(f, "\n{pad} = help: {help}"))
    }
}

/// The part of a line around a column, how far in the column stands, and how long the word there is.
fn excerpt(line: &str, column: u32) -> (String, usize, usize) {
    let at = usize::try_from(column).unwrap_or(1).saturating_sub(1);
    let start = at.saturating_sub(WINDOW);
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let shown: String = line.chars().skip(start).take(2 * WINDOW).map(clean).collect();
    let word = line.chars().skip(at).take(WINDOW).take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.')).count();
    (shown.trim_end().to_owned(), at - start, word.max(1))
}

/// The valid name nearest to what was written, if it is near enough to be meant.
#[must_use]
pub fn nearest<'a>(found: &str, valid: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = found.to_lowercase();
    let limit = (found.chars().count().max(3) / 3).max(1);
    valid
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= limit || (lower.len() > 3 && name.starts_with(&lower)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `did you mean ...`, else the valid names.
#[must_use]
pub fn suggest<'a>(found: &str, valid: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let valid: Vec<&str> = valid.into_iter().collect();
    if let Some(name) = nearest(found, valid.iter().copied()) {
        return Some(format!("did you mean `{name}`?"));
    }
    match valid.as_slice() {
        [] => None,
        [one] => Some(format!("only `{one}` is valid here")),
        many => {
            let names: Vec<String> = many.iter().map(|name| format!("`{name}`")).collect();
            Some(format!("valid here: {}", names.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_name_is_offered_and_a_far_one_is_not() {
        let names = ["region", "regions", "database"];
        assert_eq!(nearest("regoin", names), Some("region"));
        assert_eq!(nearest("Region", names), Some("region"));
        assert_eq!(nearest("bucket", names), None);
        assert_eq!(suggest("zzz", ["a", "b"]).as_deref(), Some("valid here: `a`, `b`"));
    }

    #[test]
    fn a_very_long_line_is_shown_around_the_caret() {
        let text = format!("{}wrong: 1", "x".repeat(5_000));
        let shown = Diagnostic::error("f.yaml", "test", "m").at(Pos { line: 1, column: 5_001 }, &text).to_string();
        assert!(shown.len() < 600, "{shown}");
        assert!(shown.contains("wrong: 1") && shown.contains("^^^^^"), "{shown}");
    }
}
