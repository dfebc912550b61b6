//! The checksum of a row as an expression in SQL, so that the server adds up what it reads and sends sums, not rows.
//!
//! Each column's hash is the seed of the next one's: values that change places, within a row or between rows, change
//! the sum. PostgreSQL's hash of a whole record is not used, though it would be shorter to write: it is slower (the
//! record is built first), it takes what is *equal* for the same (0 and -0, 1.0 and 1.00), and of 64-bit integers it
//! hashes only the exclusive or of both halves, so that 1 and 4,294,967,296 have one hash whatever the seed. So of such an integer
//! the upper half goes in as well, times go in as floating-point seconds, numbers with their scale, and whatever has no function
//! that looks at every bit as text. Which columns are null is hashed by itself; in the chain stands a constant for them.
//!
//! Calls of functions are most of what a row costs, so what is rare (a null, a negative zero, a year far away) is asked for
//! by a condition, whose answer goes into the seed by an exclusive or: a constant of the column's own in the usual case.

use super::port::Column;

/// Name of the row in every query: one that no column has, as a column would be taken for it.
pub(super) const ROW: &str = "muster_row";

/// Nulls that go into one hash: bits of a positive `int4`.
const BITS: usize = 30;

pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The hash of these columns, on top of `seed`, an expression itself.
pub(super) fn hash(columns: &[Column], seed: &str) -> String {
    let names: Vec<String> = columns.iter().filter(|c| c.nullable).map(|c| format!("{ROW}.{}", quoted(&c.name))).collect();
    let start = if names.is_empty() { seed.to_owned() } else { format!("({seed} # {})", nulls(&names)) };
    columns.iter().enumerate().fold(start, |chain, (number, column)| link(column, number, &chain))
}

/// Which of these are null, as a hash; 0 when none is.
fn nulls(names: &[String]) -> String {
    let none: Vec<String> = names.iter().map(|name| format!("{name} IS NOT NULL")).collect();
    let which = names.chunks(BITS).fold(literal(0), |chain, some| {
        let bits: Vec<String> = some.iter().enumerate().map(|(bit, name)| format!("({name} IS NULL)::int4 * {}", 1_u32 << bit)).collect();
        format!("hashint4extended({}, {chain})", bits.join(" + "))
    });
    format!("CASE WHEN {} THEN {} ELSE {which} END", none.join(" AND "), literal(0))
}

/// A number of this column's own. PostgreSQL's hash of a floating-point zero is the seed itself: without it zeros could change places.
fn own(column: usize, which: u64) -> String {
    // SplitMix64, of https://prng.di.unimi.it/splitmix64.c.
    let z = (2 * column as u64 + which + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    literal((z ^ (z >> 31)).cast_signed())
}

fn link(column: &Column, number: usize, chain: &str) -> String {
    let name = format!("{ROW}.{}", quoted(&column.name));
    let or = |zero: &str| if column.nullable { format!("coalesce({name}, {zero})") } else { name.clone() };
    match column.kind.as_str() {
        "smallint" | "integer" => format!("hashint4extended({}, {chain})", or("0")),
        "boolean" => format!("hashint4extended({}::int4, {chain})", or("false")),
        "oid" => format!("hashoidextended({}, {chain})", or("0")),
        "bigint" => {
            let c = or("0");
            format!("hashint8extended({c}, hashint4extended(({c} >> 32)::int4, {chain}))")
        }
        // -0 is equal to 0 and another value.
        "double precision" | "real" => {
            let function = if column.kind == "real" { "hashfloat4extended" } else { "hashfloat8extended" };
            let c = or("0");
            let negative = format!("CASE WHEN {c} = 0 AND {c}::text = '-0' THEN {} ELSE {} END", own(number, 1), own(number, 0));
            format!("{function}({c}, {chain} # {negative})")
        }
        // Seconds as `float8` name every microsecond of these years; others are hashed as text.
        "timestamp with time zone" | "timestamp without time zone" => {
            let c = or("'epoch'");
            let near = format!("{c} BETWEEN '1870-01-01 UTC' AND '2130-01-01 UTC'");
            let far = format!("CASE WHEN {near} THEN {0} ELSE hashtextextended({c}::text COLLATE \"C\", {0}) END", own(number, 0));
            format!("hashfloat8extended(date_part('epoch', {c}), {chain} # {far})")
        }
        // 1.0 and 1.00 are equal and not the same; and its hash knows no sign, takes what is no number for one thing, and has the
        // weight only as an exclusive or, which one more function mixes in.
        "numeric" => {
            let c = or("0");
            let special = format!("CASE {c}::text WHEN 'NaN' THEN -1 WHEN 'Infinity' THEN -2 ELSE -3 END");
            let scale = format!("coalesce(scale({c}) + CASE WHEN {c} < 0 THEN 65536 ELSE 0 END, {special})");
            format!("hashint4extended(0, hash_numeric_extended({c}, hashint4extended({scale}, {chain})))")
        }
        "uuid" => format!("uuid_hash_extended({}, {chain})", or("'00000000-0000-0000-0000-000000000000'")),
        "bytea" => format!("hash_record_extended(ROW({}), {chain})", or("''")),
        _ if column.nullable => format!("hashtextextended(coalesce({name}::text, '') COLLATE \"C\", {chain})"),
        _ => format!("hashtextextended({name}::text COLLATE \"C\", {chain})"),
    }
}

/// A number as SQL takes it in every place.
pub(super) fn literal(number: i64) -> String {
    format!("'{number}'::int8")
}

/// Count, sum and exclusive or of the hashes `h` in one value, so that a subquery can give it. Their order does not
/// matter; the sum is exact.
pub(super) const SUMMED: &str = "count(*)::text || ' ' || coalesce(sum(h), 0)::text || ' ' || coalesce(bit_xor(h), 0)::text";

/// Each stretch of blocks is read as such (a TID range scan), so nothing is grouped. Every name is qualified: within the
/// subquery a plain one would be taken for a column of the table, if it has one that is called so.
pub(super) fn stretches(table: &str, columns: &[Column], seed: i64, per: u32, first: u32, last: u32, open: bool) -> String {
    let hash = hash(columns, &format!("hashtidextended({ROW}.ctid, {})", literal(seed)));
    let at = "muster_stretch.number";
    let end = format!("least(({at} + 1) * {per}, 4294967295)");
    let end = if open { format!("CASE WHEN {at} = {last} THEN 4294967295 ELSE {end} END") } else { end };
    format!(
        "SELECT {at}, (SELECT {SUMMED} FROM
                (SELECT {hash} AS h FROM ONLY {table} AS {ROW}
                  WHERE {ROW}.ctid >= format('(%s,0)', {at} * {per})::tid AND {ROW}.ctid < format('(%s,0)', {end})::tid OFFSET 0) AS s) AS sum
           FROM generate_series({first}::int8, {last}::int8) AS muster_stretch(number)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, kind: &str, nullable: bool) -> Column {
        Column { name: name.into(), kind: kind.into(), nullable }
    }

    #[test]
    fn each_column_is_the_seed_of_the_next() {
        let columns = [column("id", "integer", false), column("Te\"xt", "text", true)];
        assert_eq!(
            hash(&columns, "S"),
            "hashtextextended(coalesce(muster_row.\"Te\"\"xt\"::text, '') COLLATE \"C\", hashint4extended(muster_row.\"id\", (S # CASE WHEN \
             muster_row.\"Te\"\"xt\" IS NOT NULL THEN '0'::int8 ELSE hashint4extended((muster_row.\"Te\"\"xt\" IS NULL)::int4 * 1, '0'::int8) END)))"
        );
    }

    /// A zero hands the seed on: what tells two columns of zeros apart is a number of each.
    #[test]
    fn a_zero_is_one_of_its_column() {
        let both = hash(&[column("a", "real", false), column("b", "double precision", false)], "S");
        let numbers: std::collections::BTreeSet<String> = (0..2).flat_map(|n| [own(n, 0), own(n, 1)]).collect();
        assert!(numbers.len() == 4 && numbers.iter().all(|number| both.contains(number.as_str())), "{both}");
    }

    #[test]
    fn the_expression_grows_as_the_columns_do() {
        let wide: Vec<Column> = (0..200).map(|n| column(&format!("c{n}"), "double precision", true)).collect();
        assert!(hash(&wide, "S").len() < 200 * 400);
    }

    #[test]
    fn the_last_stretch_of_an_open_piece_has_no_end() {
        let columns = [column("id", "integer", false)];
        assert!(stretches("t", &columns, 1, 16, 0, 3, true).contains("WHEN muster_stretch.number = 3 THEN 4294967295"));
        assert!(!stretches("t", &columns, 1, 16, 0, 3, false).contains("CASE"));
    }
}
