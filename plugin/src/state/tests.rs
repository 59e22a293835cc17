//! The database on a real file: what is settled at once, what a reboot voids, and the SQL itself.

use super::*;
use sqlx::{Column, Executor, SqlSafeStr, Statement, TypeInfo};

const BOOT: &str = "this-boot";

async fn open(dir: &Path, boot_id: &str) -> State {
    State::open(&dir.join("state.db"), boot_id).await.expect("a fresh database")
}

async fn with_sr(dir: &Path) -> State {
    let state = open(dir, BOOT).await;
    let device_config = Pairs::from([("path".into(), "/srv".into())]);
    let sr = SrRow { uuid: "sr".into(), device_config };
    state.attach_sr(&sr).await.expect("attached");
    state.attach_sr(&sr).await.expect("attached already");
    assert_eq!(state.srs().await.expect("readable"), [sr]);
    state
}

fn held(state: VdiState) -> Datapath {
    Datapath { dp: "dp".into(), domain: "5".into(), state, since: now(), leaked: false }
}

fn worker(vdi: &VdiId) -> WorkerRow {
    WorkerRow {
        id: "w".into(),
        vdi: vdi.clone(),
        pid: u32::MAX,
        start_time: i64::MAX.cast_unsigned(),
        socket: "/run/w.sock".into(),
        version: "1".into(),
        read_only: true,
        since: now(),
    }
}

#[tokio::test]
async fn a_vdi_is_owed_once_however_often_that_is_remembered() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = with_sr(dir.path()).await;
    let vdi = VdiId::new("sr", "vdi");
    let activate = Operation::Activate { worker: "w".into() };
    let intent = state.begin(&vdi, &activate).await.expect("begun");
    for _ in 0..3 {
        state.undo_by_giving_back(intent).await.expect("written");
        state.owe(&vdi).await.expect("written");
    }
    state.owe(&VdiId::new("sr", "other")).await.expect("written");
    let owed = state.intents().await.expect("readable");
    assert!(owed.iter().all(|intent| intent.operation == Operation::Disown), "{owed:?}");
    assert_eq!(
        owed.iter().map(|intent| intent.vdi.vdi.as_str()).collect::<Vec<_>>(),
        ["vdi", "other"]
    );
}

#[tokio::test]
async fn activation_is_settled_at_once_and_survives_the_daemon() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = with_sr(dir.path()).await;
    let vdi = VdiId::new("sr", "vdi");
    let operation = Operation::Activate { worker: "w".into() };
    let intent = state.begin(&vdi, &operation).await.expect("begun");
    let expected = Intent { id: intent, vdi: vdi.clone(), operation };
    assert_eq!(state.intents().await.expect("readable"), [expected]);
    let activated = held(VdiState::Activated(Mode::ReadWrite));
    state.settle_with_worker(intent, &worker(&vdi), &activated).await.expect("settled");
    // Killed, not closed: what was answered is there.
    let state = open(dir.path(), BOOT).await;
    assert_eq!(state.intents().await.expect("readable"), []);
    assert_eq!(state.workers().await.expect("readable"), [worker(&vdi)]);
    assert_eq!(state.datapaths(&vdi).await.expect("readable"), std::slice::from_ref(&activated));
    assert!(state.detach_sr("sr").await.is_err(), "a worker holds its SR");
    // A second worker for the same VDI can't be remembered, and nothing of that attempt is.
    let intent = state.begin(&vdi, &Operation::DestroyVdi).await.expect("begun");
    let second = WorkerRow { id: "w2".into(), ..worker(&vdi) };
    let detached = held(VdiState::Attached(Mode::ReadWrite));
    assert!(state.settle_with_worker(intent, &second, &detached).await.is_err());
    assert_eq!(state.datapaths(&vdi).await.expect("readable"), [activated]);
    assert_eq!(state.intents().await.expect("readable").len(), 1);
    let gone = held(VdiState::Detached);
    let done = state.settle_without_worker(Some(intent), &vdi, Some("w"), Some(&gone));
    done.await.expect("settled");
    assert_eq!(state.all_datapaths().await.expect("readable"), []);
    assert_eq!(state.workers().await.expect("readable"), []);
    state.detach_sr("sr").await.expect("nothing holds it");
}

#[tokio::test]
async fn rows_of_another_boot_are_void() {
    for keep_srs in [false, true] {
        let dir = tempfile::tempdir().expect("a directory");
        let state = with_sr(dir.path()).await;
        let vdi = VdiId::new("sr", "vdi");
        let intent = state.begin(&vdi, &Operation::CreateVdi).await.expect("begun");
        let activated = held(VdiState::Activated(Mode::ReadOnly));
        state.settle_with_worker(intent, &worker(&vdi), &activated).await.expect("settled");
        state.begin(&vdi, &Operation::DestroyVdi).await.expect("begun");
        state.close().await;
        let state = open(dir.path(), BOOT).await;
        let nothing = Voided { srs: 0, datapaths: 0, workers: 0, intents: 0 };
        assert_eq!(state.void_other_boots(keep_srs).await.expect("same boot"), nothing);
        state.close().await;
        let state = open(dir.path(), "next-boot").await;
        let srs = u64::from(!keep_srs);
        let all = Voided { srs, datapaths: 1, workers: 1, intents: srs };
        assert_eq!(state.void_other_boots(keep_srs).await.expect("next boot"), all);
        let left = state.intents().await.expect("readable");
        let left: Vec<_> = left.into_iter().map(|intent| intent.operation).collect();
        let begun = [Operation::CreateVdi, Operation::Disown];
        assert_eq!(left, if keep_srs { &begun[..] } else { &[] });
        let unfinished = state.unfinished("sr").await.expect("readable");
        let once = [("vdi".to_owned(), Operation::CreateVdi)];
        assert_eq!(unfinished, if keep_srs { &[] } else { &once[..] });
        state.finished("sr").await.expect("settled");
        assert_eq!(state.unfinished("sr").await.expect("readable"), []);
        assert_eq!(state.srs().await.expect("readable").len(), usize::from(keep_srs));
        assert_eq!(state.void_other_boots(false).await.expect("same boot"), nothing);
    }
}

#[tokio::test]
async fn an_operation_needs_an_attached_sr() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = open(dir.path(), BOOT).await;
    let vdi = VdiId::new("nowhere", "vdi");
    assert!(state.begin(&vdi, &Operation::CreateVdi).await.is_err());
    let attached = held(VdiState::Attached(Mode::ReadOnly));
    assert!(state.put_datapath(&vdi, &attached).await.is_err());
}

/// The compiler checked every query against `.sqlx/`; this checks `.sqlx/` against the migrations.
#[tokio::test]
async fn every_query_fits_the_migrations() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = open(dir.path(), BOOT).await;
    let queries = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.sqlx");
    let mut count = 0;
    for entry in std::fs::read_dir(queries).expect("the prepared queries") {
        let path = entry.expect("readable").path();
        let text = std::fs::read_to_string(&path).expect("readable");
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let query = json["query"].as_str().expect("its SQL").to_string();
        let mut connection = state.readers.acquire().await.expect("a connection");
        let prepared = connection.prepare(sqlx::AssertSqlSafe(query.clone()).into_sql_str()).await;
        let prepared = prepared.unwrap_or_else(|error| panic!("{query}: {error}"));
        let columns = prepared
            .columns()
            .iter()
            .map(|column| (column.name().to_string(), column.type_info().name().to_lowercase()));
        let known = json["describe"]["columns"].as_array().expect("its columns");
        let known = known.iter().map(|column| {
            let text = |key: &str| column[key].as_str().unwrap_or_default().to_string();
            (text("name"), text("type_info").to_lowercase())
        });
        assert_eq!(columns.collect::<Vec<_>>(), known.collect::<Vec<_>>(), "{query}");
        count += 1;
    }
    assert!(count > 10, "{count} queries");
}
