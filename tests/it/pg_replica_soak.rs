//! Checks of replicas that are written to, and as many with one row that is wrong: the first must all find nothing, the
//! second must all find that row. One round here; fifty, or `ROUNDS`, in `make soak`.

use crate::pg::{Cluster, Home, Programs};
use crate::pg_replica::*;
use crate::pg_replica_content::{BUSY, Page, place, settled};

#[test]
fn a_check_under_load_finds_the_one_wrong_row_and_nothing_else() {
    checks(1);
}

/// This standby ends every session that stands in the way of its replay. On a machine that is very busy that may be so
/// often that a check gives up and says so: that is no answer, and it is asked again.
fn compared(east: &Cluster, west: &Cluster, home: &Home, share: &str) -> (i32, serde_json::Value) {
    let mut last = verify(east, west, home, &["--max-load", share]);
    for _ in 0..4 {
        if last.1["tables"].is_array() {
            break;
        }
        eprintln!("asked again after {}", last.1);
        in_step(east, west);
        last = verify(east, west, home, &["--max-load", share]);
    }
    last
}

pub fn checks(rounds: usize) {
    let home = Home::new();
    let east = Cluster::named(&home, "east", Programs::Debian, "max_connections=40\nfsync=off\nautovacuum_naptime=1s\n", &[]);
    east.sql(READER);
    east.sql("CREATE TABLE busy (id bigserial PRIMARY KEY, n int NOT NULL DEFAULT 0, pad text DEFAULT repeat('x', 100)); INSERT INTO busy (n) SELECT g FROM generate_series(1, 20000) g");
    east.sql("CREATE TABLE rows (id int PRIMARY KEY, name text) WITH (autovacuum_enabled = off); INSERT INTO rows SELECT g, 'name-' || lpad(g::text, 6, '0') FROM generate_series(1, 200000) g");
    east.sql("VACUUM FREEZE rows");
    let west = east.standby_named(&home, "west", "max_standby_streaming_delay=0\n", &[]);
    settled(&east, &west);
    let path = east.sql("SELECT pg_relation_filepath('rows')");
    let (mut alarms, mut found) = (Vec::new(), 0);
    for round in 0..rounds {
        {
            let mut load = Load::begin(&east, &home, "300", BUSY);
            let load_share = ["100", "50"][round % 2];
            let (code, answer) = compared(&east, &west, &home, load_share);
            assert!(load.goes_on());
            if code != 0 {
                alarms.push(answer.to_string());
            }
        }
        // One row in 200,000 becomes another one, in the standby's file alone; then it is mended.
        let id = 1 + (round * 3_989 + 17) % 200_000;
        settled(&east, &west);
        let block = place(&east, "rows", &format!("id = {id}")).0;
        let (right, wrong) = (format!("name-{id:06}"), format!("nbme-{id:06}"));
        let swap = |from: &str, to: &str| {
            west.shut_down();
            let mut page = Page::read(&west, &path, block);
            page.replace(from, to);
            page.write();
            west.start_again();
            in_step(&east, &west);
        };
        swap(&right, &wrong);
        {
            let _load = Load::begin(&east, &home, "300", BUSY);
            let (code, answer) = compared(&east, &west, &home, "100");
            let all = answer["tables"].as_array().unwrap_or_else(|| panic!("nothing was compared: {answer}"));
            let rows = all.iter().find(|t| t["table"] == "public.rows").unwrap();
            let only = rows["differences"].as_array().is_some_and(|d| d.len() == 1 && d[0]["key"]["id"].as_str() == Some(&id.to_string()));
            let others = all.iter().filter(|t| t["state"] == "different").count();
            if code == 1 && only && others == 1 { found += 1 } else { alarms.push(answer.to_string()) }
        }
        settled(&east, &west);
        swap(&wrong, &right);
        eprintln!("round {round}: {found} found, {} wrong answers", alarms.len());
    }
    println!("{rounds} checks under load, {rounds} planted differences: {found} found; wrong answers: {}", alarms.len());
    assert!(alarms.is_empty() && found == rounds, "{alarms:?}");
}
