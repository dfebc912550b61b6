//! What is encrypted leaves its region with a real key of the other one, made at the emulator's own KMS, which refuses any
//! other. moto alone: MiniStack copies no snapshots.

use super::{
    fault_proxy::Fault,
    rds_stage::{EAST, Stage, WEST, Which},
};
use serde_json::{Value, json};

/// A key of a region: its ARN. No SDK for KMS is among Muster's own.
async fn key(stage: &Stage, region: &str) -> String {
    let scope = format!("AWS4-HMAC-SHA256 Credential=test/20260101/{region}/kms/aws4_request, SignedHeaders=host, Signature=0");
    let sent = reqwest::Client::new().post(stage.url()).header("authorization", scope).header("x-amz-target", "TrentService.CreateKey");
    let sent = sent.header("content-type", "application/x-amz-json-1.1").body("{}").send().await.unwrap();
    let made: Value = serde_json::from_str(&sent.text().await.unwrap()).unwrap();
    let arn = made["KeyMetadata"]["Arn"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    assert!(arn.contains(region), "{arn}");
    arn
}

async fn stage() -> (Stage, String, String) {
    let stage = Stage::up(Which::Moto).await;
    let (east, west) = (key(&stage, EAST).await, key(&stage, WEST).await);
    let call = stage.rds(EAST).await.create_db_instance().db_instance_identifier("orders-east").engine("postgres");
    let call = call.db_instance_class("db.t3.micro").allocated_storage(20).master_username("owner").master_user_password("first-one");
    call.storage_encrypted(true).kms_key_id(&east).send().await.unwrap();
    (stage, east, west)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_snapshot_is_copied_with_a_key_of_the_other_region() {
    let (stage, east, west) = stage().await;
    stage.step("database.snapshot", "one", json!({ "database": "orders", "region": "east" })).await.unwrap();
    let source = stage.instances("east").snapshots_of("orders-east").await.unwrap();
    assert!(source.iter().all(|s| s.kms_key.as_deref() == Some(east.as_str())), "{source:?}");
    let with = |key: &str| json!({ "database": "orders", "from": "east", "to": "west", "kms_key": key });

    let refused = stage.step("rds.copy_snapshot", "two", json!({ "database": "orders", "from": "east", "to": "west" })).await.unwrap_err();
    assert!(refused.starts_with("no_kms_key"), "{refused}");
    assert_eq!(stage.proxy.asked("Action=CopyDBSnapshot"), 0);
    // A key of the region that it comes from, and one that nobody made: KMS says no, and the operator is told what to do.
    let nobodys = format!("{}/00000000-0000-0000-0000-000000000000", west.rsplit_once('/').unwrap().0);
    for (n, wrong) in [&east, &nobodys].into_iter().enumerate() {
        let refused = stage.step("rds.copy_snapshot", &format!("wrong {n}"), with(wrong)).await.unwrap_err();
        assert!(
            refused.contains("KMSKeyNotAccessible") && refused.contains("name a KMS key of the region that gets the copy"),
            "{refused}"
        );
    }
    assert_eq!(stage.count(WEST).await, (0, 0));

    // By its ARN or its identifier; with the answer lost after the effect it is one copy all the same.
    let id = west.rsplit('/').next().unwrap();
    for (n, (given, fault)) in [(west.as_str(), None), (id, None), (west.as_str(), Some(Fault::CutAfter))].into_iter().enumerate() {
        let passed = stage.proxy.passed("Action=CopyDBSnapshot");
        if let Some(fault) = fault {
            stage.proxy.fault("Action=CopyDBSnapshot", 1, fault);
        }
        let copy = stage.step("rds.copy_snapshot", &format!("right {n}"), with(given)).await.unwrap();
        assert_eq!((&copy["kms_key"], &copy["status"]), (&json!(west), &json!("available")), "{copy}");
        let kept = stage.instances("west").snapshot(copy["snapshot"].as_str().unwrap()).await.unwrap().unwrap();
        assert_eq!(kept.kms_key.as_deref(), Some(west.as_str()), "{kept:?}");
        assert_eq!((stage.proxy.passed("Action=CopyDBSnapshot") - passed, stage.count(WEST).await.1), (1, n + 1));
    }
    // The URL by which it is fetched names the key too: it is signed with all that was asked for.
    assert!(stage.proxy.asked("KmsKeyId%3D") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_replica_is_made_with_a_key_of_the_other_region() {
    let (stage, _, west) = stage().await;
    let with = json!({ "database": "orders", "from": "east", "to": "west", "name": "orders-west" });
    let refused = stage.step("rds.create_replica", "one", with.clone()).await.unwrap_err();
    assert!(refused.starts_with("no_kms_key"), "{refused}");
    let mut with = with;
    with["kms_key"] = json!(west);
    stage.step("rds.create_replica", "two", with).await.unwrap();
    let found = stage.instances("west").instance("orders-west").await.unwrap().unwrap();
    assert_eq!(found.kms_key.as_deref(), Some(west.as_str()), "{found:?}");
}
