//! Where the tablespaces of a copied cluster go on its machine: where they are told, by their numbers, or to `DATA.tablespaces/NUMBER`, as
//! when a backup is restored. Never to where the primary has them: on the same machine it uses them, and on another one the old
//! primary's own are there, which stay with its directory. Pure: what lies in those folders is for the machine to say.

use super::contract::Refusal;
use crate::providers::port::Tablespace;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// `there`: the primary's. `said`: by their numbers. `key`: of this step, for where a folder of an earlier copy is in use.
pub(crate) fn places(
    there: &BTreeMap<u32, PathBuf>,
    said: &BTreeMap<String, PathBuf>,
    data: &Path,
    key: &str,
) -> Result<Vec<Tablespace>, Refusal> {
    let wrong = |what: String| {
        Refusal::no("tablespaces", what)
            .remedy("write `tablespaces: { NUMBER: /FOLDER }`; `SELECT oid, spcname FROM pg_tablespace` on the primary tells the numbers")
    };
    let mut told: BTreeMap<u32, &PathBuf> = BTreeMap::new();
    for (number, place) in said {
        let number = number.parse().map_err(|_| wrong(format!("`{number}` is no tablespace's number")))?;
        if !there.contains_key(&number) {
            return Err(wrong(format!("the primary has no tablespace {number}")));
        }
        if !place.is_absolute() || place.starts_with(data) {
            return Err(wrong(format!("{}: a tablespace goes to an absolute path outside the data directory", place.display())));
        }
        told.insert(number, place);
    }
    let beside = |name: String| PathBuf::from(format!("{}.tablespaces/{name}", data.display()));
    let place = |(number, from): (&u32, &PathBuf)| match told.get(number) {
        Some(to) => Tablespace { number: *number, from: from.clone(), to: (*to).clone(), or: None },
        None => {
            Tablespace { number: *number, from: from.clone(), to: beside(number.to_string()), or: Some(beside(format!("{number}-{key}"))) }
        }
    };
    let all: Vec<Tablespace> = there.iter().map(place).collect();
    if all.iter().map(|one| &one.to).collect::<BTreeSet<_>>().len() < all.len() {
        return Err(wrong("two tablespaces cannot go to the same folder".to_owned()));
    }
    match all.iter().find(|one| [&one.from, &one.to].into_iter().any(|path| path.to_string_lossy().contains('\n'))) {
        Some(odd) => Err(wrong(format!("tablespace {}: a folder whose name has a line break cannot be handed on", odd.number))),
        None => Ok(all),
    }
}

/// In words, for who is told what will be done.
pub(crate) fn note(one: &Tablespace) -> String {
    let (from, to) = (one.from.display(), one.to.display());
    format!("tablespace {} of the primary ({from}) goes to {to}, should the directory have to be copied", one.number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map<K: Ord, const N: usize>(all: [(K, &str); N]) -> BTreeMap<K, PathBuf> {
        all.into_iter().map(|(key, path)| (key, PathBuf::from(path))).collect()
    }

    #[test]
    fn each_goes_where_it_is_told_or_beside_the_directory() {
        let there = map([(16_385, "/fast"), (16_390, "/big")]);
        let all = places(&there, &map([("16390".to_owned(), "/srv/big")]), Path::new("/pg/data"), "k").unwrap();
        let shown: Vec<_> =
            all.iter().map(|one| (one.number, one.to.to_str().unwrap(), one.or.as_ref().and_then(|or| or.to_str()))).collect();
        assert_eq!(shown, [(16_385, "/pg/data.tablespaces/16385", Some("/pg/data.tablespaces/16385-k")), (16_390, "/srv/big", None)]);
        assert_eq!(places(&BTreeMap::new(), &BTreeMap::new(), Path::new("/pg/data"), "k").unwrap(), []);
    }

    #[test]
    fn what_cannot_be_is_refused_in_words() {
        let there = map([(16_385, "/fast"), (16_390, "/big")]);
        let to = |number: &str, path| map([(number.to_owned(), path)]);
        for (said, word) in [
            (to("fast", "/srv/fast"), "no tablespace's number"),
            (to("16400", "/srv/fast"), "has no tablespace 16400"),
            (to("16385", "srv/fast"), "absolute path"),
            (to("16385", "/pg/data/ts"), "outside the data directory"),
            (to("16385", "/pg/data.tablespaces/16390"), "the same folder"),
            (to("16385", "/srv/a\nb"), "line break"),
        ] {
            let refused = places(&there, &said, Path::new("/pg/data"), "k").expect_err(word);
            assert!(refused.failure.code == "tablespaces" && refused.failure.message.contains(word), "{refused:?}");
        }
    }
}
