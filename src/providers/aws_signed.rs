//! Requests to Amazon that the SDK's crates here do not make, signed with what the SDK signs with: the one question to
//! CloudWatch that Muster has, and the URL by which RDS fetches from another region.

use super::{
    aws::{AwsClients, Doing, answered},
    http::HttpClient,
    port::{Http, HttpRequest, MeasuredLag, PortError, PortResult},
};
use aws_credential_types::provider::ProvideCredentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign},
    sign::v4,
};
use jiff::{Timestamp, ToSpan};
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

const LIMIT: Duration = Duration::from_secs(5);
/// CloudWatch keeps a figure a minute; five of them bridge one that came late.
pub(super) const STRETCH: Duration = Duration::from_mins(5);
/// How long RDS has to begin with a URL.
const GOOD_FOR: Duration = Duration::from_hours(1);

fn form(params: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish()
}

struct Signed {
    headers: Vec<(String, String)>,
    params: Vec<(String, String)>,
}

async fn signed(
    clients: &AwsClients,
    (service, region): (&str, &str),
    (method, url, body): (&str, &str, &str),
    in_url: bool,
    now: Timestamp,
) -> PortResult<Signed> {
    let config = |e: String| PortError::Config(format!("a request to {service} in {region} could not be signed: {e}"));
    let provider = clients.credentials().await?;
    let found = tokio::time::timeout(LIMIT, provider.provide_credentials()).await;
    let found = found.map_err(|_| PortError::Unreachable("nobody gave credentials in time".to_owned()))?;
    let identity = found.map_err(|e| config(e.to_string()))?.into();
    let mut settings = SigningSettings::default();
    if in_url {
        settings.signature_location = SignatureLocation::QueryParams;
        settings.expires_in = Some(GOOD_FOR);
    }
    let params = v4::SigningParams::builder().identity(&identity).region(region).name(service).settings(settings);
    let params = params.time(SystemTime::from(now)).build().map_err(|e| config(e.to_string()))?.into();
    let headers = if in_url { Vec::new() } else { vec![("content-type", FORM)] };
    let request = SignableRequest::new(method, url, headers.into_iter(), SignableBody::Bytes(body.as_bytes()));
    let request = request.map_err(|e| config(e.to_string()))?;
    let (instructions, _) = sign(request, &params).map_err(|e| config(e.to_string()))?.into_parts();
    let (headers, params) = instructions.into_parts();
    let headers = headers.into_iter().map(|h| (h.name().to_owned(), h.value().to_owned())).collect();
    Ok(Signed { headers, params: params.into_iter().map(|(name, value)| (name.to_owned(), value.into_owned())).collect() })
}

const FORM: &str = "application/x-www-form-urlencoded";

/// The newest figure of `ReplicaLag`.
pub(super) async fn replica_lag(clients: &AwsClients, http: &HttpClient, instance: &str, now: Timestamp) -> PortResult<MeasuredLag> {
    let region = clients.region().await?;
    let url = clients.cloudwatch_endpoint(&region).await?;
    let begin = now.saturating_sub(STRETCH).map_err(|e| PortError::Config(e.to_string()))?;
    // The minute that has begun counts too.
    let end = now.saturating_add(1.minute()).map_err(|e| PortError::Config(e.to_string()))?;
    let body = form(&[
        ("Action", "GetMetricStatistics"),
        ("Version", "2010-08-01"),
        ("Namespace", "AWS/RDS"),
        ("MetricName", "ReplicaLag"),
        ("Dimensions.member.1.Name", "DBInstanceIdentifier"),
        ("Dimensions.member.1.Value", instance),
        ("StartTime", format!("{begin:.0}").as_str()),
        ("EndTime", format!("{end:.0}").as_str()),
        ("Period", "60"),
        // The smallest too: it is -1 as soon as one figure says that it does not replicate.
        ("Statistics.member.1", "Maximum"),
        ("Statistics.member.2", "Minimum"),
    ]);
    let what = format!("GetMetricStatistics ReplicaLag of {instance}");
    let mut last = None;
    // As often as the SDK's own clients read.
    for wait in [0, 200, 500] {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let signed = signed(clients, ("monitoring", &region), ("POST", &url, &body), false, now).await?;
        let mut headers: BTreeMap<String, String> = signed.headers.into_iter().collect();
        headers.insert("content-type".to_owned(), FORM.to_owned());
        let request = HttpRequest {
            method: "POST".to_owned(),
            url: url.clone(),
            headers,
            body: Some(body.clone().into_bytes()),
            connect_to: None,
            timeout: Some(LIMIT),
        };
        let answer = match http.send(request).await {
            Ok(answer) => answer,
            // It only reads, so whatever was lost is asked again.
            Err(error) => {
                last = Some(PortError::Unreachable(format!("{what}: {error}")));
                continue;
            }
        };
        let text = String::from_utf8_lossy(&answer.body);
        if answer.status == 200 {
            return newest(&text).ok_or_else(|| PortError::Unreachable(format!("{what}: the answer cannot be read")));
        }
        let (code, message) = (inner(&text, "Code").unwrap_or_default(), inner(&text, "Message").unwrap_or_default());
        match answered(answer.status, code, message, Doing::Reading, &what) {
            error @ (PortError::Throttled { .. } | PortError::Unreachable(_)) => last = Some(error),
            error => return Err(error),
        }
    }
    Err(last.unwrap_or(PortError::Unreachable(what)))
}

/// What stands between an element's tags.
fn inner<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

/// Of an answer of GetMetricStatistics, whose figures come in no order. `None`: it is no such answer.
fn newest(xml: &str) -> Option<MeasuredLag> {
    if !xml.contains("GetMetricStatisticsResult") {
        return None;
    }
    let Some((_, rest)) = xml.split_once("<Datapoints>") else { return Some(MeasuredLag::Nothing(STRETCH)) };
    let mut latest: Option<(Timestamp, f64, f64)> = None;
    for point in rest.split_once("</Datapoints>").map_or(rest, |(points, _)| points).split("<member>").skip(1) {
        let at: Timestamp = inner(point, "Timestamp")?.parse().ok()?;
        let figure = |name: &str| inner(point, name).and_then(|text| text.parse::<f64>().ok());
        let most = figure("Maximum")?;
        let least = figure("Minimum").unwrap_or(most);
        if latest.is_none_or(|(before, ..)| before < at) {
            latest = Some((at, least, most));
        }
    }
    Some(match latest {
        None => MeasuredLag::Nothing(STRETCH),
        Some((at, least, most)) if least < 0.0 || !most.is_finite() => MeasuredLag::NotReplicating(at),
        Some((at, _, most)) => MeasuredLag::Seconds(most, at),
    })
}

/// Where Amazon's partitions are: how names of their regions begin, and their domains, the second for addresses that are
/// reached by IPv6 as well.
const PARTITIONS: [(&str, &str, &str); 7] = [
    ("cn-", "amazonaws.com.cn", "api.amazonwebservices.com.cn"),
    ("eusc-", "amazonaws.eu", "api.amazonwebservices.eu"),
    ("us-isob-", "sc2s.sgov.gov", "api.aws.scloud"),
    ("us-isof-", "csp.hci.ic.gov", "api.aws.hci.ic.gov"),
    ("us-iso-", "c2s.ic.gov", "api.aws.ic.gov"),
    ("eu-isoe-", "cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"),
    ("", "amazonaws.com", "api.aws"),
];

/// Amazon's own address of a service, `rds` or `monitoring`, by the rules of the SDK: FIPS, dual-stack, or neither. All
/// addresses of the government's regions are FIPS; those that have a name for it keep it.
pub(super) fn address(service: &str, region: &str, (fips, dual): (bool, bool)) -> String {
    let (_, plain, both) =
        PARTITIONS.iter().find(|(begin, ..)| region.starts_with(begin)).copied().unwrap_or(("", "amazonaws.com", "api.aws"));
    let unnamed = region.starts_with("us-gov-") && (service == "monitoring" || !dual);
    let fips = if fips && !unnamed { "-fips" } else { "" };
    format!("https://{service}{fips}.{region}.{}/", if dual { both } else { plain })
}

/// The URL by which the region that gets a copy fetches from the one that has it. RDS asks for one where the source is
/// encrypted, and for no other reason refuses one.
pub(super) async fn fetch_url(clients: &AwsClients, source_region: &str, params: &[(&str, &str)], now: Timestamp) -> PortResult<String> {
    let to = clients.region().await?;
    let mut all = params.to_vec();
    all.extend([("Version", "2014-10-31"), ("DestinationRegion", to.as_str())]);
    let url = format!("{}?{}", clients.rds_of(source_region).await?, form(&all));
    let signed = signed(clients, ("rds", source_region), ("GET", &url, ""), true, now).await?;
    let pairs: Vec<(&str, &str)> = signed.params.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    Ok(format!("{url}&{}", form(&pairs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(points: &str) -> String {
        format!(
            "<GetMetricStatisticsResponse><GetMetricStatisticsResult><Datapoints>{points}</Datapoints><Label>ReplicaLag</Label></GetMetricStatisticsResult></GetMetricStatisticsResponse>"
        )
    }
    fn point(at: &str, least: &str, most: &str) -> String {
        format!("<member><Minimum>{least}</Minimum><Maximum>{most}</Maximum><Timestamp>{at}</Timestamp><Unit>Seconds</Unit></member>")
    }

    #[test]
    fn the_newest_figure_counts_and_silence_is_never_zero() {
        let (old, new) = ("2026-11-26T20:00:00Z", "2026-11-26T20:01:00Z");
        let at: Timestamp = new.parse().unwrap();
        let of = |points: &str| newest(&answer(points)).unwrap();
        assert_eq!(of(""), MeasuredLag::Nothing(STRETCH));
        assert_eq!(of(&(point(new, "2", "3.5") + &point(old, "9", "9"))), MeasuredLag::Seconds(3.5, at));
        assert_eq!(of(&(point(old, "9", "9") + &point(new, "0", "0.0"))), MeasuredLag::Seconds(0.0, at));
        assert_eq!(of(&point(new, "-1", "-1.0")), MeasuredLag::NotReplicating(at));
        assert_eq!(of(&point(new, "-1", "4")), MeasuredLag::NotReplicating(at), "one such figure within the minute is enough");
        assert_eq!(newest(&answer("").replace("<Datapoints></Datapoints>", "<Datapoints/>")), Some(MeasuredLag::Nothing(STRETCH)));
        assert_eq!(newest("<html>busy</html>"), None);
        assert_eq!(newest(&answer(&point("yesterday", "1", "1"))), None);
    }

    #[tokio::test]
    async fn addresses_are_those_of_the_sdk() {
        use aws_sdk_rds::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
        let resolver = DefaultResolver::new();
        for region in ["us-east-1", "eu-central-1", "cn-north-1", "us-gov-west-1", "us-isob-east-1", "us-iso-east-1", "eusc-de-east-1"] {
            for (fips, dual) in [(false, false), (true, false), (false, true), (true, true)] {
                let params = Params::builder().region(region.to_owned()).use_fips(fips).use_dual_stack(dual).build().unwrap();
                let theirs = ResolveEndpoint::resolve_endpoint(&resolver, &params).await.unwrap();
                assert_eq!(address("rds", region, (fips, dual)), format!("{}/", theirs.url()), "{region}, FIPS {fips}, dual-stack {dual}");
            }
        }
        // There is no resolver of CloudWatch here; as AWS's own rules have it (botocore).
        let of = |region, fips, dual| address("monitoring", region, (fips, dual));
        assert_eq!(of("us-east-1", true, false), "https://monitoring-fips.us-east-1.amazonaws.com/");
        assert_eq!(of("us-east-1", false, true), "https://monitoring.us-east-1.api.aws/");
        assert_eq!(of("us-east-1", true, true), "https://monitoring-fips.us-east-1.api.aws/");
        assert_eq!(of("us-gov-west-1", true, false), "https://monitoring.us-gov-west-1.amazonaws.com/");
        assert_eq!(of("us-gov-west-1", true, true), "https://monitoring.us-gov-west-1.api.aws/");
        assert_eq!(of("cn-north-1", false, true), "https://monitoring.cn-north-1.api.amazonwebservices.com.cn/");
    }

    #[tokio::test]
    async fn a_url_to_fetch_from_another_region_is_signed_for_that_region() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            crate::model::estate::SecretRef::File(path)
        };
        let keys = crate::model::estate::AwsCredentials { access_key_id: file("id", "AKID"), secret_access_key: file("key", "secret") };
        let aws = crate::model::estate::Aws { region: "us-west-2".into(), credentials: Some(keys), ..Default::default() };
        let clients = AwsClients::new(Some(aws));
        let params = [("Action", "CopyDBSnapshot"), ("SourceDBSnapshotIdentifier", "arn:aws:rds:us-east-1:1:snapshot:a")];
        let url = fetch_url(&clients, "us-east-1", &params, "2026-11-26T20:00:00Z".parse().unwrap()).await.unwrap();
        for part in [
            "https://rds.us-east-1.amazonaws.com/?",
            "DestinationRegion=us-west-2",
            "X-Amz-Signature=",
            "us-east-1%2Frds%2Faws4_request",
            "X-Amz-Expires=3600",
        ] {
            assert!(url.contains(part), "{url} lacks {part}");
        }
        assert!(!url.contains("secret"), "the key itself is nowhere in it");
    }
}
