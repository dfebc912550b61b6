//! What the documents say is held against the program: every file they show is valid, the list of actions is
//! current, every action's example can be used as it stands.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<PathBuf> {
    let mut all = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    all.extend(fs::read_dir(root().join("docs")).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "md")));
    all.sort();
    all
}

/// The blocks of YAML in a document that are whole files: name and text. Their first line is a comment with
/// the name.
fn files(document: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = document;
    while let Some((_, after)) = rest.split_once("\n```yaml\n") {
        let (block, more) = after.split_once("\n```").expect("a block of code that is never closed");
        rest = more;
        let name = block.lines().next().and_then(|line| line.strip_prefix("# ")).unwrap_or_default();
        if name == "muster.yaml" || name.starts_with("runbooks/") || name.starts_with("drills/") {
            found.push((name.to_owned(), format!("{block}\n")));
        }
    }
    found
}

fn muster(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.current_dir(dir).args(args).env_remove("MUSTER_ESTATE").env_remove("MUSTER_STATE");
    command.output().expect("muster starts")
}

fn write(home: &Path, name: &str, text: &str) {
    let path = home.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// The shipped files, so that what a document shows beside them has something to refer to.
fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    for name in [
        "muster.yaml",
        "runbooks/regional-failover.yaml",
        "runbooks/failback.yaml",
        "runbooks/data-plane-prepare.yaml",
        "runbooks/data-plane-failover.yaml",
        "runbooks/data-plane-failback.yaml",
        "runbooks/protect.yaml",
        "runbooks/artifact-restore.yaml",
        "runbooks/switchover.yaml",
        "drills/region-loss.yaml",
    ] {
        let mut text = fs::read_to_string(root().join(name)).unwrap();
        if name == "muster.yaml" {
            // One to copy to.
            text = text
                .replace("repositories:\n", "repositories:\n  second: { url: .muster/second, password: { env: MUSTER_REPO_PASSWORD } }\n");
        }
        write(home.path(), name, &text);
    }
    home
}

#[test]
fn every_file_that_the_documents_show_is_valid() {
    let mut shown = 0;
    for document in documents() {
        let blocks = files(&fs::read_to_string(&document).unwrap());
        // An estate of its own has nothing that the shipped files name.
        let alone = blocks.iter().any(|(name, text)| name == "muster.yaml" && !text.contains("  predictions:"));
        let home = if alone { tempfile::tempdir().unwrap() } else { home() };
        shown += blocks.len();
        for (name, text) in &blocks {
            write(home.path(), name, text);
        }
        let checked = muster(home.path(), &["validate"]);
        let said = String::from_utf8_lossy(&checked.stderr);
        assert_eq!(checked.status.code(), Some(0), "{}:\n{said}", document.display());
    }
    assert!(shown >= 16, "only {shown} whole files were found: has their form changed?");
}

/// What a policy in Terraform allows: each statement's actions and resources.
fn statements(terraform: &str) -> Vec<(Vec<String>, Vec<String>)> {
    let (_, policy) = terraform.split_once("data \"aws_iam_policy_document\" \"muster\" {").expect("the role's policy");
    let policy = policy.split_once("\n}").expect("its end").0;
    let quoted = |statement: &str, field: &str| -> Vec<String> {
        let (_, list) = statement.split_once(field).unwrap_or_else(|| panic!("no {field} in {statement}"));
        let list = list.split_once('[').unwrap().1.split_once(']').unwrap().0;
        list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
    };
    policy.split("statement {").skip(1).map(|one| (quoted(one, "actions"), quoted(one, "resources"))).collect()
}

/// Does an ARN with wild cards cover another one, whose own are covered by none but a wild card?
fn covers(pattern: &str, arn: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == arn,
        Some((before, rest)) => arn.strip_prefix(before).is_some_and(|left| (0..=left.len()).any(|n| covers(rest, &left[n..]))),
    }
}

/// The role that is to be copied allows what the runbooks beside it need, and nothing that none of them asks for.
#[test]
fn the_role_in_terraform_is_the_one_that_its_runbooks_need() {
    let document = fs::read_to_string(root().join("docs/aws.md")).unwrap();
    let home = tempfile::tempdir().unwrap();
    let blocks = files(&document);
    assert!(blocks.len() >= 7, "{} files", blocks.len());
    for (name, text) in &blocks {
        write(home.path(), name, text);
    }
    let said = muster(home.path(), &["doctor", "--permissions", "--list", "--json"]);
    let listed: serde_json::Value =
        serde_json::from_slice(&said.stdout).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&said.stderr)));
    assert_eq!(listed["unknown"], serde_json::json!([]));
    let role = statements(&document);
    let texts =
        |list: &serde_json::Value| -> Vec<String> { list.as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect() };
    let (mut lacks, mut used) = (Vec::new(), std::collections::BTreeSet::new());
    for statement in listed["policy"]["Statement"].as_array().unwrap() {
        for action in texts(&statement["Action"]) {
            for resource in texts(&statement["Resource"]) {
                let allows = |(actions, resources): &(Vec<String>, Vec<String>)| {
                    actions.contains(&action) && resources.iter().any(|pattern| covers(pattern, &resource))
                };
                if !role.iter().any(allows) {
                    lacks.push(format!("{action} on {resource}"));
                }
            }
            used.insert(action);
        }
    }
    assert!(lacks.is_empty(), "the runbooks need what the role does not allow: {lacks:#?}");
    let idle: Vec<&String> = role.iter().flat_map(|(actions, _)| actions).filter(|action| !used.contains(*action)).collect();
    assert!(idle.is_empty(), "the role allows what no runbook asks for: {idle:?}");
    assert!(used.len() >= 30, "{} permissions", used.len());
    assert!(
        covers("arn:aws:rds:*:*:db:orders-*", "arn:aws:rds:us-east-1:*:db:orders-east")
            && !covers("arn:aws:rds:*:*:db:orders-*", "arn:aws:rds:*:*:db:*")
    );
}

#[test]
fn a_wrong_file_in_a_document_would_be_found() {
    let home = home();
    let document = "text\n```yaml\n# runbooks/wrong.yaml\nrunbook: wrong\nsteps:\n  - { id: a, uses: dns.shft }\n```\n";
    let blocks = files(document);
    assert_eq!(blocks.len(), 1);
    write(home.path(), &blocks[0].0, &blocks[0].1);
    let checked = muster(home.path(), &["validate"]);
    assert_eq!(checked.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&checked.stderr).contains("did you mean `dns.shift`?"));
}

#[test]
fn the_list_of_actions_is_current() {
    let made = Command::new("bash")
        .arg(root().join("scripts/docs-actions.sh"))
        .arg("-")
        .env("MUSTER", env!("CARGO_BIN_EXE_muster"))
        .output()
        .expect("bash starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made = String::from_utf8(made.stdout).unwrap();
    assert!(made.contains("## database.promote"), "the script found no actions:\n{made}");
    let kept = fs::read_to_string(root().join("docs/actions.md")).unwrap();
    assert!(made == kept, "docs/actions.md is not current: run scripts/docs-actions.sh");
}

/// Each example is put into a runbook, after the step that it refers to if it does.
#[test]
fn every_example_of_an_action_is_valid() {
    let home = home();
    let listed = muster(home.path(), &["actions", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let actions = listed["actions"].as_array().unwrap();
    assert!(actions.len() >= 15, "{} actions", actions.len());
    for action in actions {
        let (name, example) = (action["name"].as_str().unwrap(), action["example"].as_str().unwrap());
        let before = if example.contains("steps.fence.") {
            "  - id: fence\n    uses: database.fence\n    with: { database: predictions, region: east }\n"
        } else {
            ""
        };
        let step = example.trim_end().replace('\n', "\n    ");
        let file = format!("runbooks/{}.yaml", name.replace('.', "-"));
        write(home.path(), &file, &format!("runbook: example\nsteps:\n{before}  - {step}\n"));
        let checked = muster(home.path(), &["validate", &file]);
        let said = String::from_utf8_lossy(&checked.stderr);
        assert_eq!(checked.status.code(), Some(0), "the example of {name}:\n{example}\n{said}");
    }
}

/// What a document links to within the repository is there.
#[test]
fn no_link_leads_nowhere() {
    let mut followed = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            let path = link.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            followed += 1;
            let target = document.parent().unwrap().join(path);
            assert!(target.exists(), "{} links to {link}, which is not there", document.display());
        }
    }
    assert!(followed >= 10, "only {followed} links were followed");
}

/// Every test that the list of failure scenarios names is there.
#[test]
fn every_scenario_names_tests_that_exist() {
    let text = fs::read_to_string(root().join("docs/failure-scenarios.md")).unwrap();
    let sources: String =
        ["src", "tests"].iter().flat_map(|dir| rust_files(&root().join(dir))).map(|p| fs::read_to_string(p).unwrap()).collect();
    let rows: Vec<Vec<&str>> =
        text.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| #")).map(|l| l.split(" | ").collect()).collect();
    let rows: Vec<_> = rows.into_iter().filter(|cells| !cells[0].contains("---")).collect();
    assert_eq!(rows.len(), 55);
    let mut named = 0;
    for cells in rows {
        let tests: Vec<_> = cells.last().unwrap().split('`').skip(1).step_by(2).collect();
        for test in &tests {
            assert!(sources.contains(&format!("fn {test}(")), "there is no test `{test}`: {}", cells[1]);
        }
        named += tests.len();
        assert!(!tests.is_empty() || ["no", "partly", "does not apply"].contains(&cells[3]), "nothing shows: {}", cells[1]);
    }
    assert!(named >= 60, "{named} tests");
}

/// The functions of a source file, by name: what stands from `fn` to the brace that ends it, as rustfmt lays it.
fn functions(source: &str) -> BTreeMap<String, String> {
    let lines: Vec<&str> = source.lines().collect();
    let mut found = BTreeMap::new();
    for (at, line) in lines.iter().enumerate() {
        let Some((before, after)) = line.split_once("fn ") else { continue };
        let name: String = after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if name.is_empty() || !before.trim_start().chars().all(|c| c.is_ascii_lowercase() || "()_ ".contains(c)) {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
        let length = if line.ends_with('}') { 1 } else { lines[at..].iter().position(|l| *l == end).map_or(1, |n| n + 1) };
        found.insert(name, lines[at..at + length].join("\n"));
    }
    found
}

/// The text of a test and of the functions beside it that it comes to call.
fn with_what_it_calls(functions: &BTreeMap<String, String>, test: &str) -> String {
    let (mut known, mut next, mut text) = (BTreeSet::from([test]), vec![test], String::new());
    while let Some(name) = next.pop() {
        let body = &functions[name];
        text += body;
        for other in functions.keys() {
            let calls = [format!(" {other}("), format!("({other}("), format!("!{other}("), format!("&{other}("), format!("({other})")];
            if !known.contains(other.as_str()) && calls.iter().any(|call| body.contains(call)) {
                known.insert(other);
                next.push(other);
            }
        }
    }
    text
}

/// What is wrong with a row of planted defects: each test that it names is one against a real server or repository, and each
/// word that is said to be heard stands in one of them.
fn wrong_with_row(cells: &[&str], sources: &[BTreeMap<String, String>]) -> Option<String> {
    let [_, defect, _, words, tests] = cells else { return Some(format!("it has {} cells", cells.len())) };
    let mut text = String::new();
    for test in tests.split('`').skip(1).step_by(2) {
        let Some(functions) = sources.iter().find(|functions| functions.contains_key(test)) else {
            return Some(format!("there is no test `{test}` in tests/it: {defect}"));
        };
        text += &with_what_it_calls(functions, test);
    }
    let mut heard =
        words.split('`').skip(1).step_by(2).flat_map(|word| word.split('…')).map(str::trim).filter(|w| !w.is_empty()).peekable();
    if heard.peek().is_none() {
        return Some(format!("no word says what is heard: {defect}"));
    }
    let deaf: Vec<&str> = heard.filter(|word| !text.contains(word)).collect();
    (!deaf.is_empty()).then(|| format!("{tests} never looks for {deaf:?}: {defect}"))
}

#[test]
fn every_planted_defect_has_its_test_which_looks_for_its_words() {
    let text = fs::read_to_string(root().join("docs/postgres.md")).unwrap();
    let sources: Vec<_> = rust_files(&root().join("tests")).iter().map(|path| functions(&fs::read_to_string(path).unwrap())).collect();
    let table = text.split("## Planted defects").nth(1).expect("the section");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|l| l.starts_with("| ") && !l.starts_with("| #") && !l.contains("---"))
        .map(|l| l.split(" | ").collect())
        .collect();
    assert!(rows.len() >= 40, "{} defects", rows.len());
    for (index, cells) in rows.iter().enumerate() {
        assert_eq!(cells[0], format!("| {}", index + 1), "{cells:?}");
        assert_eq!(wrong_with_row(cells, &sources), None);
    }
}

#[test]
fn a_planted_defect_whose_test_does_not_look_for_it_would_be_found() {
    let source = "fn helped() {\n    let x = 1;\n    said(\"a gap\");\n}\n\n#[test]\nfn planted() {\n    helped();\n}\n\nfn apart() {\n    said(\"stalled\");\n}\n";
    let sources = [functions(source)];
    assert_eq!(sources[0].len(), 3);
    let row = |words, tests| wrong_with_row(&["| 1", "a defect", "`who`", words, tests], &sources);
    assert_eq!(row("`a gap`, and `a … gap`", "`planted` |"), None);
    assert!(row("`stalled`", "`planted` |").unwrap().contains("never looks for [\"stalled\"]"));
    assert_eq!(row("`stalled`", "`planted`, `apart` |"), None);
    assert!(row("an exit code", "`planted` |").unwrap().contains("no word"));
    assert!(row("`a gap`", "`plucked` |").unwrap().contains("no test `plucked`"));
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}
