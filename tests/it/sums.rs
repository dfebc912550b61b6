//! What servers tell of an object's checksums beyond HEAD, and that a bucket's verification makes the most of it: content
//! that came in one piece here and in parts there is found the same, or not, without being read.

use super::{
    buckets::{EAST, WEST, Yard},
    fault_proxy::FaultProxy,
    stores_servers::{Server, ministack, moto, s3s_fs, seaweedfs},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use crc_fast::{CrcAlgorithm, checksum};
use futures::{StreamExt, stream};
use muster::providers::port::*;
use std::collections::BTreeMap;

const MIB: usize = 1024 * 1024;
/// How Muster cuts 20 MiB.
const PARTS: [u64; 3] = [8 * MIB as u64, 8 * MIB as u64, 4 * MIB as u64];

/// A request for an object's content.
const READ: &str = "/models-east/same?x-id=GetObject ";

fn body(seed: u32) -> Vec<u8> {
    (0..20 * MIB as u32).map(|n| (n.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 22) as u8).collect()
}

fn crc32(bytes: &[u8]) -> String {
    STANDARD.encode((checksum(CrcAlgorithm::Crc32IsoHdlc, bytes) as u32).to_be_bytes())
}

async fn put(store: &dyn ObjectWrite, key: &str, body: &[u8]) {
    store.put(key, body.to_vec().into(), &BTreeMap::new(), false).await.unwrap();
}

async fn put_in_parts(store: &dyn ObjectWrite, key: &str, body: &[u8]) {
    let chunks: Vec<PortResult<Vec<u8>>> = body.chunks(777_777).map(|chunk| Ok(chunk.to_vec())).collect();
    store.put_stream(key, stream::iter(chunks).boxed(), &BTreeMap::new(), false).await.unwrap();
}

/// What a server tells of the same content in one piece and in parts, and of other content in the same parts.
async fn told(server: &Server) -> [Option<ObjectSums>; 3] {
    server.bucket("sums", false).await;
    let store = server.open("s3://sums/below");
    put(&*store, "one", &body(1)).await;
    put_in_parts(&*store, "parts", &body(1)).await;
    put_in_parts(&*store, "other", &body(2)).await;
    let sums = [store.sums("one").await.unwrap(), store.sums("parts").await.unwrap(), store.sums("other").await.unwrap()];
    for (sums, key) in sums.iter().zip(["one", "parts", "other"]) {
        println!("{key}: {sums:?}");
        let head = store.head(key).await.unwrap().unwrap();
        assert!(sums.as_ref().is_none_or(|sums| sums.etag == head.etag), "{key}: {sums:?} {head:?}");
        // Nothing that is said of the whole is wrong.
        let whole = crc32(&if key == "other" { body(2) } else { body(1) });
        assert!(sums.as_ref().and_then(|sums| sums.whole.get("crc32")).is_none_or(|sum| *sum == whole), "{key}: {sums:?}");
    }
    assert_eq!(store.sums("never-there").await.unwrap(), None);
    sums
}

/// It keeps how large the parts are, and not their checksums.
#[tokio::test(flavor = "multi_thread")]
async fn ministack_tells_where_an_upload_was_cut() {
    let [one, parts, other] = told(&ministack().await).await.map(Option::unwrap);
    assert_eq!((one.whole["crc32"].as_str(), one.parts.len()), (crc32(&body(1)).as_str(), 0));
    assert_eq!((parts.parts.as_slice(), parts.whole.len()), (&PARTS[..], 0));
    assert_eq!((one.same(&parts), parts.same(&parts), parts.same(&other)), (None, Some(true), Some(false)));
}

/// It keeps the checksum of an upload's checksums, and says nothing of its parts.
#[tokio::test(flavor = "multi_thread")]
async fn moto_tells_no_more_than_head() {
    let [one, parts, other] = told(&moto().await).await.map(Option::unwrap);
    assert_eq!((one.whole.get("crc32"), one.parts.len()), (Some(&crc32(&body(1))), 0));
    assert!(parts.whole.is_empty() && parts.parts.is_empty() && parts.of_parts.contains_key("crc32"), "{parts:?}");
    assert_eq!((one.same(&parts), parts.same(&other)), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_know_the_call_tells_nothing() {
    assert_eq!(told(&s3s_fs().await).await, [None, None, None]);
}

/// It keeps how large the parts are, and tells their checksum in HEAD alone.
#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_tells_where_an_upload_was_cut() {
    let server = seaweedfs().await;
    let [one, parts, other] = told(&server).await.map(Option::unwrap);
    assert_eq!((one.parts.len(), parts.parts.as_slice(), other.parts.as_slice()), (0, &PARTS[..], &PARTS[..]));
    let store = server.open("s3://sums/below");
    let head = async |key: &str| store.head(key).await.unwrap().unwrap().checksum;
    let parts = parts.and_of_head(head("parts").await.as_deref());
    let other = other.and_of_head(head("other").await.as_deref());
    let one = one.and_of_head(head("one").await.as_deref());
    assert_eq!((one.same(&parts), parts.same(&parts), parts.same(&other)), (None, Some(true), Some(false)));
}

/// Their checksums are made of those of three parts at both sides. That they were cut at the same places is what makes another
/// checksum other content.
async fn parts_that_were_cut_alike_are_told_apart(server: Server) {
    let yard = Yard::new(server, "");
    yard.server.bucket(EAST, false).await;
    yard.server.bucket(WEST, false).await;
    let (east, west) = yard.stores();
    put_in_parts(&*east, "same", &body(1)).await;
    put_in_parts(&*east, "other", &body(1)).await;
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    put_in_parts(&*west, "same", &body(1)).await;
    put_in_parts(&*west, "other", &body(2)).await;
    let looked = tokio::task::block_in_place(|| yard.verify(", read_data: false"));
    assert_eq!((looked.code, yard.differences()), (Some(1), vec![("corrupt".to_owned(), "other".to_owned())]), "{}", looked.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_parts_that_were_cut_alike_are_told_apart_without_reading_them() {
    parts_that_were_cut_alike_are_told_apart(seaweedfs().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ministack_parts_that_were_cut_alike_are_told_apart_without_reading_them() {
    parts_that_were_cut_alike_are_told_apart(ministack().await).await;
}

/// As Amazon documents it: with the checksum of each part, which MiniStack has computed and does not tell.
fn with_the_sums_of_parts(proxy: &FaultProxy, bodies: BTreeMap<&'static str, Vec<u8>>) {
    proxy.mend("?attributes", move |request, answer| {
        let key = request.split(['?', ' ']).nth(1).unwrap().rsplit('/').next().unwrap();
        let (mut text, mut rest) = (String::new(), answer.as_str());
        while let Some((before, behind)) = rest.split_once("<Size>") {
            let (size, behind) = behind.split_once("</Size>").unwrap();
            let number = before.rsplit_once("<PartNumber>").unwrap().1.split('<').next().unwrap();
            let from = (number.parse::<usize>().unwrap() - 1) * PARTS[0] as usize;
            let sum = crc32(&bodies[key][from..from + size.parse::<usize>().unwrap()]);
            text.push_str(&format!("{before}<Size>{size}</Size><ChecksumCRC32>{sum}</ChecksumCRC32>"));
            rest = behind;
        }
        text + rest
    });
}

/// HEAD tells a checksum of the whole at one side and one of three parts at the other. Nothing may be read.
#[tokio::test(flavor = "multi_thread")]
async fn content_in_one_piece_and_in_parts_is_compared_without_reading_it() {
    let server = ministack().await;
    let proxy = FaultProxy::before(server.port());
    let yard = Yard::at(server, &proxy.url(), "");
    yard.server.bucket(EAST, false).await;
    yard.server.bucket(WEST, false).await;
    let (east, west) = yard.stores();
    for key in ["same", "other"] {
        put(&*east, key, &body(1)).await;
    }
    // Times count in whole seconds: a copy that differs and is younger is corrupt.
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    put_in_parts(&*west, "same", &body(1)).await;
    put_in_parts(&*west, "other", &body(2)).await;
    let look = |more: &str| tokio::task::block_in_place(|| yard.verify(&format!(", read_data: false{more}")));

    // Without the parts' checksums nobody can tell.
    let blind = look("");
    assert!(blind.code == Some(1) && blind.said.contains("2 undecided: "), "{}", blind.said);
    with_the_sums_of_parts(&proxy, [("same", body(1)), ("other", body(2))].into());
    // One part a page, so that all pages are needed.
    for pages in [None, Some(1), Some(2)] {
        pages.into_iter().for_each(|size| proxy.pages_of(size));
        let same = look(", prefix: same");
        assert_eq!((same.code, same.output()["set"]["same_by"].clone()), (Some(0), serde_json::json!({ "checksum": 1 })), "{}", same.said);
        let differs = look("");
        assert_eq!((differs.code, yard.differences()), (Some(1), vec![("corrupt".to_owned(), "other".to_owned())]), "{}", differs.said);
    }
    assert_eq!(proxy.asked(READ), 0, "nothing was read");
}

/// A role that may not ask is told nothing, and the content is read as before.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_ask_reads() {
    let server = ministack().await;
    let proxy = FaultProxy::before(server.port());
    let yard = Yard::at(server, &proxy.url(), "");
    yard.server.bucket(EAST, false).await;
    yard.server.bucket(WEST, false).await;
    let (east, west) = yard.stores();
    put(&*east, "same", &body(1)).await;
    put_in_parts(&*west, "same", &body(1)).await;
    proxy.fault("?attributes", usize::MAX, super::fault_proxy::Fault::Deny);
    let read = tokio::task::block_in_place(|| yard.verify(""));
    assert_eq!((read.code, read.output()["set"]["same_by"].clone()), (Some(0), serde_json::json!({ "content": 1 })), "{}", read.said);
    assert!(proxy.asked("?attributes") > 0 && proxy.passed("?attributes") == 0 && proxy.asked(READ) == 1);
}
