//! The SDK's standard configuration, through the real program: keys of the environment, a profile, a role that a
//! profile assumes, and addresses for a service and a region; and `muster doctor` on top of it.

use super::{
    place::{Place, Said},
    stores_servers::{Server, moto},
};
use aws_sdk_rds::config::{BehaviorVersion, Credentials, Region};

const ROLE: &str = "arn:aws:iam::111122223333:role/dr";
const DEAD: &str = "http://127.0.0.1:1";

fn client(server: &Server, keys: Credentials) -> aws_sdk_rds::Client {
    let config = aws_sdk_rds::Config::builder().behavior_version(BehaviorVersion::latest()).region(Region::new("us-east-1"));
    aws_sdk_rds::Client::from_conf(config.endpoint_url(server.url()).credentials_provider(keys).build())
}

async fn make_instance(rds: &aws_sdk_rds::Client) {
    let call = rds.create_db_instance().db_instance_identifier("orders-east").engine("postgres").db_instance_class("db.t3.micro");
    call.allocated_storage(20).master_username("owner").master_user_password("first-one").send().await.unwrap();
}

/// Keys of a role in another account: what is made with them is in that account alone.
async fn assumed(server: &Server) -> Credentials {
    let body = format!("Action=AssumeRole&Version=2011-06-15&RoleSessionName=test&RoleArn={ROLE}");
    let scope = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/sts/aws4_request, SignedHeaders=host, Signature=0";
    let sent = reqwest::Client::new().post(server.url()).header("authorization", scope);
    let text = sent.header("content-type", "application/x-www-form-urlencoded").body(body).send().await.unwrap().text().await.unwrap();
    let of = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>")).unwrap_or_else(|| panic!("no {name} in {text}"));
        rest.split_once('<').unwrap().0.to_owned()
    };
    Credentials::new(of("AccessKeyId"), of("SecretAccessKey"), Some(of("SessionToken")), None, "test")
}

/// One snapshot, with this `aws` of the region and this environment, and no other configuration.
fn snapshot(place: &Place, aws: &str, env: &[(&str, &str)]) -> Said {
    place.file("muster.yaml", &format!("regions: {{ east: {{ aws: {aws} }} }}\ndatabases: {{ orders: {{ engine: rds-postgres, instances: {{ east: {{ id: orders-east }} }} }} }}\n"));
    place.book("  - id: act\n    uses: database.snapshot\n    on_failure: stop\n    with: { database: orders, region: east }\n");
    let mut command = place.command(&["run", "book.yaml", "--live", "--json"]);
    let ours: Vec<String> = std::env::vars().map(|(name, _)| name).filter(|name| name.starts_with("AWS_")).collect();
    for name in &ours {
        command.env_remove(name);
    }
    command.env("AWS_EC2_METADATA_DISABLED", "true").env("AWS_CONFIG_FILE", place.path("config"));
    command.env("AWS_SHARED_CREDENTIALS_FILE", place.path("credentials")).envs(env.iter().copied());
    place.spawn(command).end()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_come_from_the_environment_a_profile_or_a_role_that_it_assumes() {
    let server = moto().await;
    let url = server.url();
    make_instance(&client(&server, Credentials::new("test", "test", None, None, "test"))).await;
    let place = Place::new();
    let count = async |keys: Credentials| {
        client(&server, keys).describe_db_snapshots().snapshot_type("manual").send().await.unwrap().db_snapshots().len()
    };
    let home = || Credentials::new("test", "test", None, None, "test");
    let keys = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")];

    // Nothing at all: it says what is missing.
    let said = tokio::task::block_in_place(|| snapshot(&place, &format!("{{ region: us-east-1, endpoints: {{ rds: \"{url}\" }} }}"), &[]))
        .expect(1);
    let failure = said.step("act")["failure"].to_string();
    assert!(failure.contains("credentials") && failure.contains("profile"), "{failure}");

    // The environment: keys, and an address for the one service.
    let env = [&keys[..], &[("AWS_ENDPOINT_URL_RDS", url.as_str())]].concat();
    tokio::task::block_in_place(|| snapshot(&place, "{ region: us-east-1 }", &env)).expect(0);
    assert_eq!(count(home()).await, 1);
    // What the estate says of a region comes before it.
    let env = [&keys[..], &[("AWS_ENDPOINT_URL_RDS", DEAD)]].concat();
    tokio::task::block_in_place(|| snapshot(&place, &format!("{{ region: us-east-1, endpoints: {{ rds: \"{url}\" }} }}"), &env)).expect(0);
    assert_eq!(count(home()).await, 2);

    // A profile with keys and addresses of its own.
    place.file("credentials", "[base]\naws_access_key_id = test\naws_secret_access_key = test\n");
    place.file(
        "config",
        &format!("[profile base]\nregion = us-east-1\nservices = local\n[services local]\nrds =\n  endpoint_url = {url}\n[profile dr]\nrole_arn = {ROLE}\nsource_profile = base\nservices = local\n"),
    );
    tokio::task::block_in_place(|| snapshot(&place, "{ region: us-east-1, profile: base }", &[])).expect(0);
    assert_eq!(count(home()).await, 3);

    // A role in another account, where there is no such instance yet.
    let env = [("AWS_ENDPOINT_URL_STS", url.as_str())];
    let role = "{ region: us-east-1, profile: dr }";
    let said = tokio::task::block_in_place(|| snapshot(&place, role, &env)).expect(1);
    assert_eq!(said.step("act")["failure"]["code"], "no_instance", "{}", said.out);
    make_instance(&client(&server, assumed(&server).await)).await;
    tokio::task::block_in_place(|| snapshot(&place, role, &env)).expect(0);
    assert_eq!((count(home()).await, count(assumed(&server).await).await), (3, 1), "it went to the role's account");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_writes_the_policy_and_tries_what_reads() {
    let server = moto().await;
    make_instance(&client(&server, Credentials::new("test", "test", None, None, "test"))).await;
    let place = Place::new();
    place.file("id", "test").file("secret", "test");
    place.file("muster.yaml", &format!(
        "regions:\n  east:\n    aws:\n      region: us-east-1\n      credentials: {{ access_key_id: {{ file: @/id }}, secret_access_key: {{ file: @/secret }} }}\n      endpoints: {{ rds: \"{url}\", cloudwatch: \"{url}\" }}\ndatabases: {{ orders: {{ engine: rds-postgres, instances: {{ east: {{ id: orders-east }} }} }} }}\n",
        url = server.url()
    ));
    place.book("  - id: take\n    uses: database.snapshot\n    with: { database: orders, region: east }\n  - id: look\n    uses: database.verify_replica\n    with: { database: orders, region: east }\n");
    let said = tokio::task::block_in_place(|| place.muster(&["doctor", "--permissions", "book.yaml"])).expect(0);
    let last = said.last();
    let statements = last["policy"]["Statement"].to_string();
    assert!(statements.contains("rds:CreateDBSnapshot") && statements.contains("arn:aws:rds:us-east-1:*:db:orders-east"), "{statements}");
    assert!(!statements.contains("Delete"), "no more than is needed: {statements}");
    let outcome = |name: &str| {
        let checks = last["checks"].as_array().unwrap();
        checks.iter().find(|c| c["permission"] == name).unwrap_or_else(|| panic!("{name} in {last}"))["outcome"].clone()
    };
    for name in ["rds:DescribeDBInstances", "rds:DescribeDBSnapshots", "cloudwatch:GetMetricStatistics"] {
        assert_eq!(outcome(name), "allowed", "{last}");
    }
    assert_eq!(outcome("rds:CreateDBSnapshot"), "not_checked");
    let listed = tokio::task::block_in_place(|| place.muster(&["doctor", "--permissions", "--list", "book.yaml"])).expect(0).last();
    assert_eq!((&listed["policy"], &listed["checks"]), (&last["policy"], &serde_json::json!([])));
    tokio::task::block_in_place(|| place.muster(&["doctor"])).expect(2);
}
