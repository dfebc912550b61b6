//! The long counts, which `make soak` runs: what a slice of them in the other tests shows, often enough to be believed.

#[test]
#[ignore = "half an hour: make soak"]
fn replica_checks_under_load_find_what_is_wrong_and_nothing_else() {
    crate::pg_replica_soak::checks(std::env::var("ROUNDS").map_or(50, |n| n.parse().unwrap()));
}
