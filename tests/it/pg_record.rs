//! What is put on record at one position of the log while clients write is what a restore to that position has: to the row. And
//! what does not come back, such as an unlogged table, is named.

use crate::{
    pg_drill::{estate, filled, left, muster},
    pg_vault::{Vault, archive_all, give, pgbench},
};
use serde_json::Value;
use std::fs;

const RECORD: &str = "runbook: record
inputs: { table: { type: string } }
steps:
  - id: record
    uses: database.record
    on_failure: stop
    with: { database: orders, region: east, repository: vault, tables: [pgbench_accounts, pgbench_history, \"{{ inputs.table }}\"] }
";
const PROVE: &str = "runbook: prove
steps:
  - { id: prove, uses: database.prove, on_failure: stop, with: { repository: vault, until: recorded, checks: { pages: false, structure: false } } }
";

fn recorded(check: &Value) -> (String, bool, String) {
    let word = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
    (word("name"), check["ok"].as_bool().unwrap_or_default(), word("found"))
}

#[test]
fn what_is_on_record_is_what_comes_back() {
    let vault = Vault::new();
    estate(&vault);
    let cluster = filled(&vault);
    let write = |name: &str, text: &str| {
        let path = vault.dir().join(name);
        fs::write(&path, text).unwrap();
        give(&path);
    };
    let known = fs::read_to_string(vault.dir().join("muster.yaml")).unwrap();
    let database =
        format!("databases: {{ orders: {{ engine: postgres, instances: {{ east: {{ host: 127.0.0.1, port: {} }} }} }}, ", cluster.port);
    write("muster.yaml", &known.replace("databases: { ", &database));
    write("runbooks/record.yaml", RECORD);
    write("runbooks/prove.yaml", PROVE);
    // Nothing is compared with nothing.
    let early = muster(&vault, &["run", "record", "-i", "table=ledger", "--live"]);
    assert!(early.code == Some(1) && early.out.contains("no base backup of cluster"), "{} {}", early.out, early.err);
    vault.base_backup(&cluster);
    let none = muster(&vault, &["run", "prove", "--live"]);
    assert!(none.code == Some(1) && none.out.contains("no table is on record"), "{} {}", none.out, none.err);

    // Put on record while six clients write to the very tables.
    cluster.sql("INSERT INTO ledger VALUES (1), (2), (3)");
    let out = std::thread::scope(|scope| {
        let load = scope.spawn(|| pgbench(&cluster, &["-T", "6", "-c", "6", "-n"]));
        std::thread::sleep(std::time::Duration::from_secs(2));
        let ran = muster(&vault, &["run", "record", "-i", "table=ledger", "--live"]);
        load.join().unwrap();
        assert_eq!(ran.code, Some(0), "{} {}", ran.out, ran.err);
        ran.last()["steps"][0]["output"].clone()
    });
    let rows: u64 = out["tables"][1]["rows"].as_u64().unwrap();
    println!("recorded under load: writers waited {} ms, {rows} rows of history", out["held_ms"]);
    let written: u64 = cluster.sql("SELECT count(*) FROM pgbench_history").parse().unwrap();
    assert!(rows > 0 && rows < written, "{rows} of {written}: nobody wrote, before or after: {out}");
    assert_eq!(out["tables"][2]["rows"], 3, "{out}");
    archive_all(&cluster);
    let ran = muster(&vault, &["run", "prove", "--live"]);
    assert_eq!(ran.code, Some(0), "{} {}", ran.out, ran.err);
    let proof = &ran.last()["steps"][0]["output"];
    let checks: Vec<_> = proof["checks"].as_array().unwrap().iter().map(recorded).collect();
    assert_eq!(
        checks.iter().map(|c| (c.0.as_str(), c.1)).collect::<Vec<_>>(),
        [("recorded: pgbench_accounts", true), ("recorded: pgbench_history", true), ("recorded: ledger", true)]
    );
    assert!(checks[1].2.starts_with(&format!("{rows} rows")), "{proof}");
    assert_eq!(left(&vault), Vec::<String>::new());

    // What the log does not hold does not come back, and the proof says so.
    cluster.sql("CREATE UNLOGGED TABLE cache (n int)");
    cluster.sql("INSERT INTO cache VALUES (1), (2)");
    let ran = muster(&vault, &["run", "record", "-i", "table=cache", "--live"]);
    assert_eq!(ran.code, Some(0), "{} {}", ran.out, ran.err);
    archive_all(&cluster);
    let ran = muster(&vault, &["run", "prove", "--live"]);
    assert!(
        ran.code == Some(1) && ran.out.contains("recorded: cache: 0 rows, content 0:0; on record are 2 rows"),
        "{} {}",
        ran.out,
        ran.err
    );
    assert_eq!(left(&vault), Vec::<String>::new());
}
