//! The house rules, held over our own source: which room may use which (the arrows of the architecture),
//! how long files and functions may be, and what may not be called where.
//!
//! The source is read as text with comments, strings and test code blanked out, so that a rule can be
//! spelled in a comment without breaking it.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// Which rooms each room may use. Arrows go down only; an exception is a line of its own, with its reason.
const ARROWS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("runbook", &["model"]),
    ("plan", &["model"]),
    ("providers", &["model"]),
    ("repository", &["model", "providers"]),
    ("actions", &["model", "providers", "repository"]),
    ("journal", &["model"]),
    ("engine", &["actions", "journal", "plan", "providers", "model"]),
    ("drill", &["engine", "journal", "plan", "providers", "model"]),
    ("evidence", &["journal", "plan", "providers", "model"]),
    ("service", &["drill", "evidence", "engine", "actions", "repository", "journal", "plan", "runbook", "providers", "model"]),
    ("api", &["service", "model"]),
    ("cli", &["service", "model", "lab"]),
    ("lab", &["providers", "model"]),
];

/// What one file may use beyond its room's arrows, and why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("engine/work.rs", "runbook", "the one language of expressions: `when` and `{{ }}` are evaluated while a run goes on"),
    ("actions/readiness_check.rs", "plan", "one rule says when a proof counts, here and where backups are listed"),
    ("actions/backup_forget.rs", "plan", "one rule says what is kept, here and on the command line"),
    ("actions/rds_prune_snapshots.rs", "plan", "the same rule says which snapshots are kept"),
    ("cli/actions.rs", "actions", "the catalogue is what this command prints"),
    ("cli/actions.rs", "runbook", "the nearest valid name"),
    ("cli/schema.rs", "actions", "the catalogue is part of a runbook's schema"),
    ("cli/schema.rs", "runbook", "the schemas are what this command prints"),
    ("cli/validate.rs", "actions", "the catalogue against which files are checked"),
    ("cli/validate.rs", "runbook", "diagnostics are what this command prints"),
    ("cli/plan.rs", "actions", "a dry run is the actions' own `prepare`"),
    ("cli/plan.rs", "engine", "the key that a step would have"),
    ("cli/plan.rs", "runbook", "expressions and the lint of dependencies"),
    ("cli/plan.rs", "providers", "a dry run reads the world"),
    ("cli/status.rs", "drill", "what the estate looks like is what drills compare"),
    ("cli/status.rs", "providers", "status reads the world"),
    ("journal/postgres.rs", "providers", "a lease is counted on the holder's clock"),
    ("journal/postgres_link.rs", "providers", "how long a connection lay idle is told by the clock"),
    ("journal/postgres_session.rs", "providers", "a lease is counted on the holder's clock"),
    ("cli/output.rs", "journal", "events are told as they become durable"),
    ("cli/output.rs", "runbook", "diagnostics are printed in one place"),
    ("cli/operate.rs", "journal", "an operator's commands are the journal's type"),
    ("cli/runs.rs", "journal", "rows and events are the journal's types"),
    ("cli/runs.rs", "plan", "a run is shown from its fold"),
    ("cli/runs.rs", "engine", "which statuses need a person"),
    ("cli/runs.rs", "drill", "a drill is watched from its fold"),
    ("cli/progress.rs", "journal", "events are told as they become durable"),
    ("cli/progress.rs", "plan", "progress is read from the fold"),
    ("cli/show.rs", "drill", "a drill is shown from its fold"),
    ("cli/show.rs", "journal", "rows and events are the journal's types"),
    ("cli/show.rs", "plan", "a run is shown from its fold"),
    ("cli/demo.rs", "providers", "a clock of its own around lab and drill"),
    ("cli/mod.rs", "providers", "the lab stands behind the port for faults"),
];

const ROOMS: &[&str] = &[
    "actions",
    "api",
    "cli",
    "drill",
    "engine",
    "evidence",
    "journal",
    "lab",
    "model",
    "plan",
    "providers",
    "repository",
    "runbook",
    "service",
];

struct Source {
    /// From `src/`.
    name: String,
    text: String,
    /// The same without comments, strings and test code; lines stay where they are.
    code: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let hidden = path.file_name().unwrap().to_string_lossy().starts_with('.');
        if path.is_dir() && !hidden && !path.ends_with("target") {
            walk(&path, found);
        } else if path.is_file() && !hidden {
            found.push(path);
        }
    }
}

/// Everything under `src/` that is not a test.
fn sources() -> Vec<Source> {
    let src = root().join("src");
    let mut files = Vec::new();
    walk(&src, &mut files);
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
    let mut tests = BTreeSet::new();
    let mut sources = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        let stem = file.file_stem().unwrap();
        let folder =
            if stem == "mod" || stem == "lib" || stem == "main" { file.parent().unwrap().to_owned() } else { file.with_extension("") };
        tests.extend(test_modules(&text, file.parent().unwrap(), &folder));
        let code = without_tests(&blank(&text));
        sources.push(Source { name: file.strip_prefix(&src).unwrap().to_str().unwrap().to_owned(), text, code });
    }
    let test = |source: &Source| {
        tests.iter().any(|test| src.join(&source.name) == *test || src.join(&source.name).starts_with(test.with_extension("")))
    };
    sources.retain(|source| !test(source));
    assert!(sources.len() > 80, "only {} files were found", sources.len());
    sources
}

/// The files that `#[cfg(test)] mod …;` names.
fn test_modules(text: &str, beside: &Path, folder: &Path) -> Vec<PathBuf> {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let mut found = Vec::new();
    for (at, _) in lines.iter().enumerate().filter(|(_, line)| **line == "#[cfg(test)]") {
        let path = lines[at + 1].strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix("\"]"));
        let declared = lines[at + usize::from(path.is_some()) + 1];
        let name = declared
            .trim_start_matches("pub ")
            .trim_start_matches("pub(crate) ")
            .strip_prefix("mod ")
            .and_then(|rest| rest.strip_suffix(';'));
        if let Some(name) = name {
            found.push(match path {
                Some(path) => beside.join(path),
                None if folder.join(name).is_dir() => folder.join(name).join("mod.rs"),
                None => folder.join(format!("{name}.rs")),
            });
        }
    }
    // A folder of tests is one with all that is in it.
    found.iter().map(|path| if path.ends_with("mod.rs") { path.parent().unwrap().with_extension("rs") } else { path.clone() }).collect()
}

/// Comments, strings and character literals as blanks; every line keeps its place.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = if rest.starts_with(b"//") {
            rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            text[at..].find("*/").map_or(rest.len(), |end| end + 2)
        } else if rest[0] == b'r'
            && (rest.get(1) == Some(&b'"') || rest.starts_with(b"r#"))
            && !at.checked_sub(1).is_some_and(|before| bytes[before].is_ascii_alphanumeric() || bytes[before] == b'_')
        {
            let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
            let close = format!("\"{}", "#".repeat(hashes));
            if rest.get(1 + hashes) == Some(&b'"') {
                text[at + hashes + 2..].find(&close).map_or(rest.len(), |end| end + 2 * hashes + 3)
            } else {
                0
            }
        } else if rest[0] == b'"' {
            string_end(rest)
        } else if rest[0] == b'\'' {
            character_end(rest)
        } else {
            0
        };
        for byte in &mut out[at..at + end] {
            *byte = if *byte == b'\n' { b'\n' } else { b' ' };
        }
        at += end.max(1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn string_end(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// A character literal, told from a lifetime by the quote that ends it.
fn character_end(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        return rest.iter().skip(3).position(|b| *b == b'\'').map_or(0, |end| end + 4);
    }
    let text = String::from_utf8_lossy(&rest[1..rest.len().min(6)]);
    let width = text.chars().next().map_or(1, char::len_utf8);
    if rest.get(1 + width) == Some(&b'\'') { width + 2 } else { 0 }
}

/// Blanks each item under `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(at) = out.find("#[cfg(test)]") {
        let rest = &out[at..];
        let end = match (rest.find('{'), rest.find(';')) {
            (Some(open), semicolon) if semicolon.is_none_or(|semicolon| open < semicolon) => open + block(&rest[open..]),
            (_, Some(semicolon)) => semicolon + 1,
            _ => rest.len(),
        };
        let blanks: String = rest[..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(at..at + end, &blanks);
    }
    out
}

/// The length of the block that begins here.
fn block(code: &str) -> usize {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// The rooms that a piece of code names as `crate::ROOM` or `crate::{ROOM…, ROOM…}`.
fn rooms_used(code: &str) -> Vec<(usize, String)> {
    let mut used = Vec::new();
    for (at, found) in code.match_indices("crate::") {
        let rest = &code[at + found.len()..];
        let names: Vec<&str> = if rest.starts_with('{') { top_level(&rest[1..block(rest) - 1]) } else { vec![rest] };
        for name in names {
            let word: String = name.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            used.push((line_of(code, at), word));
        }
    }
    used
}

fn top_level(group: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if c == ',' && depth == 0 {
            parts.push(&group[from..at]);
            from = at + 1;
        }
    }
    parts.push(&group[from..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

#[track_caller]
fn none(found: Vec<String>, rule: &str) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

#[test]
fn tidy_arrows_go_down_only() {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for source in sources() {
        let Some((room, _)) = source.name.split_once('/') else { continue };
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == room) else {
            wrong.push(format!("src/{room} is a room that the table does not know"));
            continue;
        };
        // `super::super` from the second level is the root, by another door.
        let depth = source.name.matches('/').count();
        if source.code.contains(&"super::".repeat(depth + 1)) {
            wrong.push(format!("src/{}: goes up by `super` to the root", source.name));
        }
        for (line, other) in rooms_used(&source.code) {
            if other == room || !ROOMS.contains(&other.as_str()) || allowed.contains(&other.as_str()) {
                continue;
            }
            match EXCEPTIONS.iter().position(|(file, to, _)| *file == source.name && *to == other) {
                Some(exception) => drop(used.insert(exception)),
                None => wrong.push(format!("src/{}:{line}: {room} -> {other}", source.name)),
            }
        }
    }
    let idle = EXCEPTIONS.iter().enumerate().filter(|(at, _)| !used.contains(at));
    wrong.extend(idle.map(|(_, (file, to, _))| format!("{file} -> {to} is an exception that nothing needs")));
    none(wrong, "something stands in the wrong room");
}

#[test]
fn tidy_every_file_says_what_it_is_for_and_is_not_too_long() {
    let mut wrong = Vec::new();
    let mut files = Vec::new();
    walk(&root().join("src"), &mut files);
    walk(&root().join("tests/it"), &mut files);
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
        let text = std::fs::read_to_string(file).unwrap();
        let name = file.strip_prefix(root()).unwrap().display().to_string();
        if !text.starts_with("//!") {
            wrong.push(format!("{name} has no head"));
        }
        let lines = text.lines().count();
        if lines > 600 {
            wrong.push(format!("{name} has {lines} lines"));
        }
    }
    none(wrong, "every file begins with `//!` and has at most 600 lines");
}

#[test]
fn tidy_functions_fit_on_a_screen() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for source in sources() {
        for (at, _) in source.code.match_indices("fn ") {
            let word = source.code[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '_');
            let rest = &source.code[at..];
            let Some(open) = rest.find(['{', ';']).filter(|open| word && rest.as_bytes()[*open] == b'{') else { continue };
            seen += 1;
            let lines = rest[..open + block(&rest[open..])].lines().count();
            if lines > 70 {
                wrong.push(format!("src/{}:{}: {lines} lines", source.name, line_of(&source.code, at)));
            }
        }
    }
    assert!(seen > 800, "only {seen} functions were found");
    none(wrong, "a function has at most 70 lines");
}

#[test]
fn tidy_nothing_asks_the_machine_for_time_or_chance_but_the_clock() {
    let banned = [
        "Instant::now",
        "SystemTime::now",
        "Timestamp::now",
        "Utc::now",
        "Local::now",
        "thread::sleep",
        "getrandom::",
        "rand::",
        "Uuid::new_v",
        "Uuid::now_v",
    ];
    none(calls(&banned, &["providers/clock.rs"]), "take a Clock");
}

#[test]
fn tidy_nothing_panics_on_purpose() {
    let banned = [".unwrap()", ".unwrap_err()", ".expect(", ".expect_err(", "panic!(", "todo!(", "unimplemented!(", "unreachable!("];
    none(calls(&banned, &[]), "an error is a value");
}

fn calls(banned: &[&str], but_in: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !but_in.contains(&source.name.as_str())) {
        for word in banned {
            let hits = source.code.match_indices(word);
            wrong.extend(hits.map(|(at, _)| format!("src/{}:{}: {word}", source.name, line_of(&source.code, at))));
        }
    }
    wrong
}

#[test]
fn tidy_unsafe_code_is_forbidden() {
    for name in ["lib.rs", "main.rs"] {
        let source = sources().into_iter().find(|source| source.name == name).unwrap();
        assert!(source.text.contains("#![forbid(unsafe_code)]"), "{name}");
    }
}

#[test]
fn tidy_no_file_knows_the_machine_it_was_written_on() {
    let mut files = Vec::new();
    walk(&root(), &mut files);
    // Spelled in parts, so that this file is not one of them.
    let places = [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];
    let mut wrong = Vec::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let name = file.strip_prefix(root()).unwrap().display().to_string();
        let hits = text.lines().enumerate().filter(|(_, line)| places.iter().any(|place| begins_a_path(line, place)));
        wrong.extend(hits.map(|(at, line)| format!("{name}:{}: {}", at + 1, line.trim())));
    }
    none(wrong, "no path of anyone's own machine");
}

/// A place begins a path unless it goes on from another one.
fn begins_a_path(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| line[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && !"._-}@$*".contains(c)))
}

#[test]
fn tidy_reads_source_as_it_is() {
    let text = "fn a() { let s = \"crate::cli { unwrap()\"; let c = '{'; let l: &'static str = r#\"} \" crate::lab\"#; } // crate::api\n#[cfg(test)]\nmod tests { use crate::drill; }\nuse crate::{plan::{decide, state}, model};";
    let code = without_tests(&blank(text));
    let used: Vec<_> = rooms_used(&code).into_iter().map(|(line, room)| format!("{line} {room}")).collect();
    assert_eq!(used, ["4 plan", "4 model"]);
    assert_eq!(code.lines().count(), 4);
    assert_eq!(block("{ { } } x"), 7);
    assert!(begins_a_path("cd /x/y", "/x/") && !begins_a_path("target/x/y", "/x/"));
}
