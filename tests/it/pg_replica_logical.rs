//! `muster replica verify` on a logical replica: compared by key, because its rows lie elsewhere.

use crate::pg::{Cluster, Home, Programs};
use crate::pg_replica::*;
use serde_json::Value;

const TABLES: &str = "
CREATE TABLE orders (region text, id bigint, name text, amount numeric, at timestamptz DEFAULT now(), PRIMARY KEY (region, id));
CREATE TABLE items (id bigint PRIMARY KEY, name text, secret text);
CREATE TABLE keyless (n int);
CREATE TABLE left_out (id int PRIMARY KEY);
CREATE SEQUENCE numbers";

/// A publisher and its subscriber.
pub fn pair(home: &Home, programs: Programs) -> (Cluster, Cluster) {
    let settings = "max_connections=30\nfsync=off\nwal_level=logical\n";
    let east = Cluster::named(home, "east", programs, settings, &[]);
    let west = Cluster::named(home, "west", programs, settings, &[]);
    for cluster in [&east, &west] {
        cluster.sql(READER);
        cluster.sql(TABLES);
    }
    east.sql("INSERT INTO orders SELECT 'region ' || g % 7, g, 'name ' || g, g * 1.1 FROM generate_series(1, 60000) g");
    east.sql(
        "INSERT INTO items SELECT g, 'item ' || g, 's' FROM generate_series(1, 130000) g; SELECT nextval('numbers'), nextval('numbers')",
    );
    // Only some columns and rows of the items.
    east.sql("CREATE PUBLICATION p FOR TABLE orders, keyless, items (id, name) WHERE (id <= 120000)");
    west.sql(&format!(
        "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port={} user=postgres dbname=postgres' PUBLICATION p WITH (copy_data = true)",
        east.port
    ));
    eventually("its tables are ready", || west.sql("SELECT count(*) FROM pg_subscription_rel WHERE srsubstate = 'r'") == "3");
    (east, west)
}

fn table<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let all = answer["tables"].as_array().unwrap_or_else(|| panic!("{answer}"));
    all.iter().find(|t| t["table"] == name).unwrap_or_else(|| panic!("no {name} in {answer}"))
}

fn named(answer: &Value, what: &str) -> bool {
    answer["structure"].as_array().unwrap().iter().any(|d| d["what"] == what)
}

fn logical(programs: Programs) {
    let home = Home::new();
    let (east, west) = pair(&home, programs);
    // Not the row that is planted below: an update that comes by would put it right.
    let script = "\\set id random(100, 60000)\n\\set new random(1000000, 9000000)\nUPDATE orders SET amount = amount + 1 WHERE region = 'region ' || :id % 7 AND id = :id;\n\
                  INSERT INTO items (id, name) VALUES (:new, 'new') ON CONFLICT DO NOTHING;\nDELETE FROM orders WHERE region = 'region ' || (:id + 1) % 7 AND id = :id + 1;\n\
                  INSERT INTO orders VALUES ('region ' || (:id + 1) % 7, :id + 1, 'again', 1) ON CONFLICT DO NOTHING;\n";
    let mut load = Load::begin(&east, &home, "100", script);
    for _ in 0..2 {
        let (code, answer) = verify(&east, &west, &home, &["--max-load", "100", "--table", "orders", "--table", "items"]);
        assert_eq!((code, answer["replication"].as_str().unwrap()), (0, "logical"), "{answer}");
        assert_eq!((&table(&answer, "public.items")["rows"], &table(&answer, "public.items")["state"]), (&120_000.into(), &"equal".into()));
        assert!(table(&answer, "public.orders")["rows"].as_u64().unwrap() > 59_000, "{answer}");
    }
    assert!(load.goes_on(), "nothing was written meanwhile");
    // Differences that nobody replicated, while others go on.
    west.sql("UPDATE items SET name = 'wrong' WHERE id = 77777; DELETE FROM items WHERE id = 100; INSERT INTO items (id, name) VALUES (-5, 'more')");
    west.sql(
        "UPDATE orders SET name = 'wrong' WHERE (region, id) = ('region 3', 10); INSERT INTO orders (region, id) VALUES ('region 99', 1)",
    );
    let (code, answer) = verify(&east, &west, &home, &["--max-load", "100"]);
    assert_eq!((code, answer["verdict"].as_str().unwrap()), (1, "different"), "{answer}");
    let mut found: Vec<String> = ["public.items", "public.orders"]
        .iter()
        .flat_map(|name| table(&answer, name)["differences"].as_array().unwrap())
        .map(|d| format!("{} {} {}", d["kind"].as_str().unwrap(), d["key"], d["columns"]))
        .collect();
    found.sort();
    assert_eq!(
        found,
        [
            "changed {\"id\":\"10\",\"region\":\"region 3\"} [\"name\"]",
            "changed {\"id\":\"77777\"} [\"name\"]",
            "extra {\"id\":\"-5\"} []",
            "extra {\"id\":\"1\",\"region\":\"region 99\"} []",
            "missing {\"id\":\"100\"} []",
        ]
    );
    drop(load);
    // What a logical replica does not have, or cannot be compared by, is said.
    assert_eq!(table(&answer, "public.keyless")["state"], "unknown");
    assert_eq!(table(&answer, "public.left_out")["state"], "not_replicated");
    assert!(named(&answer, "sequence public.numbers value") && named(&answer, "table public.left_out publication"), "{answer}");

    // What somebody changed on one of them alone.
    let extension = if programs == Programs::Eighteen { "vector" } else { "amcheck" };
    east.sql(&format!("CREATE EXTENSION {extension}"));
    east.sql("CREATE ROLE clerk LOGIN");
    west.sql("ALTER TABLE items ALTER name TYPE varchar(60)");
    let (_, answer) = verify(&east, &west, &home, &["--max-load", "100"]);
    let bad = |what: &str| answer["structure"].as_array().unwrap().iter().find(|d| d["what"] == what).and_then(|d| d["bad"].as_bool());
    let found = [bad(&format!("extension {extension}")), bad("role clerk"), bad("column public.items.name")];
    assert_eq!(found, [Some(true), Some(false), Some(true)], "{answer}");

    west.sql("ALTER SUBSCRIPTION s DISABLE");
    eventually("nobody applies", || west.sql("SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL") == "0");
    let (code, answer) = verify(&east, &west, &home, &["--state-only"]);
    assert_eq!((code, answer["replica"]["cause"].as_str().unwrap()), (1, "subscription_disabled"), "{answer}");
    west.sql("ALTER SUBSCRIPTION s ENABLE");
    // A row that cannot be applied stops the worker for good.
    east.sql("INSERT INTO orders (region, id, name) VALUES ('region 99', 1, 'collides')");
    eventually("it fails again and again", || {
        let (_, answer) = verify(&east, &west, &home, &["--state-only"]);
        answer["replica"]["cause"] == "no_receiver" && answer["replica"]["why"].as_str().unwrap().contains("failed")
    });
}

#[test]
fn a_logical_replica_is_compared_by_key() {
    logical(Programs::Debian);
}

#[test]
fn a_logical_replica_is_compared_by_key_in_18() {
    logical(Programs::Eighteen);
}
