//! The checksums of an object that HEAD does not tell: by GetObjectAttributes, which knows an upload's parts.
//!
//! An object that came in parts has a checksum made of those of its parts, which says nothing of the same content in one
//! piece, or cut at other places. CRCs can be put together: from those of all parts and their sizes comes that of the
//! whole, without a byte being read. Of other digests only uploads that were cut at the same places can be compared.

use super::aws::{Doing, explain};
use super::port::{ObjectSums, PortError, PortResult};
use super::s3::{S3Bucket, tag};
use aws_sdk_s3::{
    operation::get_object_attributes::GetObjectAttributesOutput,
    types::{Checksum, ChecksumType, GetObjectAttributesParts, ObjectAttributes, ObjectPart},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use crc_fast::{CrcAlgorithm, checksum_combine};

/// So many parts an upload has at most, and so many a page.
const MOST_PARTS: usize = 10_000;
const PAGE: i32 = 1_000;

/// `None` when nobody tells: not every server knows the call, and not every role may make it.
pub(super) async fn sums(bucket: &S3Bucket, key: &str) -> PortResult<Option<ObjectSums>> {
    let (mut first, mut parts, mut after): (Option<GetObjectAttributesOutput>, Vec<ObjectPart>, Option<String>) = Default::default();
    loop {
        let Some(answer) = page(bucket, key, after.as_deref()).await? else { return Ok(None) };
        // Replaced between two pages.
        if first.as_ref().is_some_and(|first| first.e_tag() != answer.e_tag()) {
            return Ok(None);
        }
        let listed = answer.object_parts();
        parts.extend(listed.map(GetObjectAttributesParts::parts).unwrap_or_default().iter().cloned());
        let more = listed.filter(|listed| listed.is_truncated() == Some(true)).map(|listed| listed.next_part_number_marker());
        let next = more.map(|next| next.map(str::to_owned));
        first.get_or_insert(answer);
        match next {
            None => return Ok(first.map(|first| told(&first, parts))),
            Some(next) if next.is_some() && next != after && parts.len() < MOST_PARTS => after = next,
            // It goes on without end, or without saying where: then nothing is known of the parts.
            Some(_) => return Ok(first.map(|first| told(&first, Vec::new()))),
        }
    }
}

async fn page(bucket: &S3Bucket, key: &str, after: Option<&str>) -> PortResult<Option<GetObjectAttributesOutput>> {
    let call = bucket.clients.s3().await?.read.get_object_attributes().bucket(&bucket.bucket).key(bucket.full(key));
    let call = call.object_attributes(ObjectAttributes::Etag).object_attributes(ObjectAttributes::ObjectSize);
    let call = call.object_attributes(ObjectAttributes::Checksum).object_attributes(ObjectAttributes::ObjectParts);
    let sent = call.max_parts(PAGE).set_part_number_marker(after.map(str::to_owned)).send().await;
    match sent.map_err(|e| explain(&e, Doing::Reading, &bucket.name("GetObjectAttributes", key))) {
        Ok(answer) => Ok(Some(answer)),
        Err(PortError::NotFound(_) | PortError::Refused(_)) => Ok(None),
        Err(e) => Err(e),
    }
}

fn told(answer: &GetObjectAttributesOutput, mut parts: Vec<ObjectPart>) -> ObjectSums {
    parts.sort_by_key(ObjectPart::part_number);
    let mut sums = ObjectSums { etag: tag(answer.e_tag()), ..ObjectSums::default() };
    let count =
        answer.object_parts().and_then(GetObjectAttributesParts::total_parts_count).and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let in_parts = count > 0 || sums.etag.as_ref().is_some_and(|etag| etag.contains('-'));
    let kept = answer.checksum().map(|kept| (kept.checksum_type(), values(kept)));
    for (kind, (name, value)) in kept.into_iter().flat_map(|(kind, all)| all.map(move |one| (kind, one))) {
        // Some write behind it of how many parts it is made; Amazon does so in HEAD, and not here.
        let (sum, counted) = value.split_once('-').map_or((value, false), |(sum, _)| (sum, true));
        let of_parts = counted
            || match kind {
                Some(ChecksumType::Composite) => true,
                Some(ChecksumType::FullObject) => false,
                // Of this one there is no other kind.
                _ => in_parts && name != "crc64nvme",
            };
        let place = if of_parts { &mut sums.of_parts } else { &mut sums.whole };
        place.insert(name.to_owned(), sum.to_owned());
    }
    let sizes: Vec<u64> = parts.iter().filter_map(|part| u64::try_from(part.size()?).ok()).collect();
    let size = answer.object_size().and_then(|size| u64::try_from(size).ok());
    // A part that is not listed would make another checksum, and a wrong answer.
    if count > 0 && parts.len() == count && sizes.len() == count && Some(sizes.iter().sum()) == size {
        sums.whole.extend(put_together(&parts, &sizes));
        sums.parts = sizes;
    }
    sums
}

fn values(kept: &Checksum) -> impl Iterator<Item = (&'static str, &str)> {
    let all = [
        ("sha256", kept.checksum_sha256()),
        ("crc64nvme", kept.checksum_crc64_nvme()),
        ("crc32c", kept.checksum_crc32_c()),
        ("crc32", kept.checksum_crc32()),
        ("sha1", kept.checksum_sha1()),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?)))
}

type OfPart = for<'a> fn(&'a ObjectPart) -> Option<&'a str>;

/// Name, algorithm, bytes, and where a part has it.
const CRCS: [(&str, CrcAlgorithm, usize, OfPart); 3] = [
    ("crc32", CrcAlgorithm::Crc32IsoHdlc, 4, ObjectPart::checksum_crc32),
    ("crc32c", CrcAlgorithm::Crc32Iscsi, 4, ObjectPart::checksum_crc32_c),
    ("crc64nvme", CrcAlgorithm::Crc64Nvme, 8, ObjectPart::checksum_crc64_nvme),
];

/// The checksums of the whole, of each algorithm that every part has.
fn put_together(parts: &[ObjectPart], sizes: &[u64]) -> Vec<(String, String)> {
    let whole = |(name, algorithm, bytes, of): &(&'static str, CrcAlgorithm, usize, OfPart)| {
        let mut whole = None;
        for (part, size) in parts.iter().zip(sizes) {
            let sum = STANDARD.decode(of(part)?).ok().filter(|sum| sum.len() == *bytes)?;
            let sum = sum.iter().fold(0u64, |number, byte| (number << 8) | u64::from(*byte));
            whole = Some(whole.map_or(sum, |before| checksum_combine(*algorithm, before, sum, *size)));
        }
        Some(((*name).to_owned(), STANDARD.encode(&whole?.to_be_bytes()[8 - bytes..])))
    };
    CRCS.iter().filter_map(whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crc_fast::checksum;

    fn text(algorithm: CrcAlgorithm, bytes: usize, body: &[u8]) -> String {
        STANDARD.encode(&checksum(algorithm, body).to_be_bytes()[8 - bytes..])
    }
    fn crc32(body: &[u8]) -> String {
        text(CrcAlgorithm::Crc32IsoHdlc, 4, body)
    }

    /// As Amazon tells of an upload in parts of this size.
    fn upload(body: &[u8], part: usize) -> (GetObjectAttributesOutput, Vec<ObjectPart>) {
        let parts: Vec<ObjectPart> = (1..)
            .zip(body.chunks(part))
            .map(|(n, chunk)| {
                let made = ObjectPart::builder().part_number(n).size(i64::try_from(chunk.len()).unwrap()).checksum_crc32(crc32(chunk));
                let made = made.checksum_crc32_c(text(CrcAlgorithm::Crc32Iscsi, 4, chunk));
                made.checksum_crc64_nvme(text(CrcAlgorithm::Crc64Nvme, 8, chunk)).build()
            })
            .collect();
        let listed = GetObjectAttributesParts::builder().total_parts_count(i32::try_from(parts.len()).unwrap()).build();
        let kept = Checksum::builder().checksum_crc32("composite=").checksum_type(ChecksumType::Composite).build();
        let answer = GetObjectAttributesOutput::builder().e_tag(format!("0cc1-{}", parts.len())).object_parts(listed);
        (answer.checksum(kept).object_size(i64::try_from(body.len()).unwrap()).build(), parts)
    }

    #[test]
    fn the_checksums_of_parts_make_that_of_the_whole_wherever_it_was_cut() {
        let body: Vec<u8> = (0..100_003u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 23) as u8).collect();
        assert_eq!(crc32(b"123456789"), "y/Q5Jg==", "the check value of the algorithm: cbf43926");
        for part in [1_000, 33_333, 50_000, 100_002, 100_003] {
            let (answer, mut parts) = upload(&body, part);
            parts.reverse();
            let sums = told(&answer, parts);
            assert_eq!(sums.whole["crc32"], crc32(&body), "in parts of {part}");
            assert_eq!(sums.whole["crc32c"], text(CrcAlgorithm::Crc32Iscsi, 4, &body), "in parts of {part}");
            assert_eq!(sums.whole["crc64nvme"], text(CrcAlgorithm::Crc64Nvme, 8, &body), "in parts of {part}");
            assert_eq!((sums.of_parts["crc32"].as_str(), sums.parts.iter().sum::<u64>()), ("composite=", 100_003));
        }
    }

    #[test]
    fn of_a_list_that_is_not_whole_nothing_is_made() {
        let (answer, mut parts) = upload(&[7; 5_000], 1_000);
        parts.remove(2);
        let sums = told(&answer, parts);
        assert!(sums.whole.is_empty() && sums.parts.is_empty(), "{sums:?}");
        // One part without its checksum is enough.
        let (answer, mut parts) = upload(&[7; 5_000], 1_000);
        parts[1] = ObjectPart::builder().part_number(2).size(1_000).build();
        let sums = told(&answer, parts);
        assert!(sums.whole.is_empty() && sums.parts.len() == 5, "{sums:?}");
    }

    /// A checksum of parts that was taken for one of the whole would find differences where there are none.
    #[test]
    fn a_checksum_is_of_the_whole_or_of_parts() {
        let of = |etag: &str, kept: Checksum| told(&GetObjectAttributesOutput::builder().e_tag(etag).checksum(kept).build(), Vec::new());
        let kept = || Checksum::builder().checksum_crc32("AA==");
        for (etag, kept, whole) in [
            ("a", kept().build(), true),
            ("a-2", kept().build(), false),
            ("a-2", kept().checksum_type(ChecksumType::FullObject).build(), true),
            ("a", kept().checksum_type(ChecksumType::Composite).build(), false),
            ("a", kept().checksum_crc32("AA==-3").build(), false),
            ("a-2", kept().checksum_crc32("AA==-2").checksum_type(ChecksumType::FullObject).build(), false),
        ] {
            let sums = of(etag, kept.clone());
            let place = if whole { &sums.whole } else { &sums.of_parts };
            assert_eq!(
                (place.get("crc32").map(String::as_str), sums.whole.len() + sums.of_parts.len()),
                (Some("AA=="), 1),
                "{etag} {kept:?}"
            );
        }
        let nvme = of("a-2", Checksum::builder().checksum_crc64_nvme("BB==").build());
        assert!(nvme.whole.contains_key("crc64nvme"), "{nvme:?}");
    }
}
