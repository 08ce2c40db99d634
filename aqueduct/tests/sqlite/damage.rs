//! Files that are not what they should be: each is refused with what is wrong, and damaged rows are never served.

use std::path::Path;

use aqueduct::StoreError;
use aqueduct::sqlite::{SqliteFile, SqliteStore};
use aqueduct::store::{Action, Applied, Command, CommandState, Op, Query, RowState, Store};
use sqlx::SqliteConnection;

use crate::store::{at, claim, listed, named, other, row, run};

/// What opening the file is refused with.
async fn refused(path: &Path) -> StoreError {
    SqliteFile::open(path).await.unwrap_err()
}

async fn version(connection: &mut SqliteConnection) -> i64 {
    sqlx::query_scalar("select version from aq_schema").fetch_one(connection).await.unwrap()
}

/// A closed file with a store of some rows in it, all of them in the file itself.
async fn filled(path: &Path) {
    let store = SqliteStore::open(path).await.unwrap();
    store.take_over(&claim(), None).await.unwrap();
    let rows: Vec<_> = (1..500).map(|position| row(position, "a")).collect();
    store.apply(&claim(), &[Op::Put(rows)]).await.unwrap();
    drop(store);
    run(path, "pragma wal_checkpoint(truncate)").await;
}

#[tokio::test]
async fn a_newer_schema_is_refused_with_both_versions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("aqueduct.db");
    filled(&path).await;
    run(&path, "update aq_schema set version = 7").await;
    let error = refused(&path).await;
    assert!(matches!(error, StoreError::TooNew { found: 7, known: 2 }), "{error}");
    assert!(error.to_string().contains('7') && error.to_string().contains('2'), "{error}");
    assert_eq!(version(&mut other(&path).await).await, 7, "nothing is changed");
}

#[tokio::test]
async fn an_applications_own_file_gets_the_tables_and_keeps_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    run(&path, "create table orders (id integer primary key); insert into orders values (7)").await;
    filled(&path).await;
    assert_eq!(version(&mut other(&path).await).await, 2);
    let order: i64 = sqlx::query_scalar("select id from orders").fetch_one(&mut other(&path).await).await.unwrap();
    assert_eq!(order, 7);
    let store = SqliteStore::open(&path).await.unwrap();
    assert_eq!(store.browse(&Query::default()).await.unwrap().len(), 100);
}

#[tokio::test]
async fn files_and_folders_that_cannot_be_used_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let says = async |path: &Path, why: &str| {
        let text = refused(path).await.to_string();
        assert!(text.contains(why) && text.contains(path.file_name().unwrap().to_str().unwrap()), "{text}");
    };
    let foreign = folder.path().join("foreign.db");
    std::fs::write(&foreign, "no database at all ".repeat(500)).unwrap();
    says(&foreign, "no SQLite file").await;
    says(&folder.path().join("missing/aqueduct.db"), "create it").await;
    says(folder.path(), "cannot be opened").await;

    let whole = folder.path().join("whole.db");
    filled(&whole).await;
    let bytes = std::fs::read(&whole).unwrap();
    let half = folder.path().join("half.db");
    std::fs::write(&half, &bytes[..bytes.len() / 2]).unwrap();
    let problem = match SqliteStore::open(&half).await {
        Ok(store) => store.browse(&Query::default()).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(&problem, StoreError::Refused(text) if text.contains("damaged")), "{problem}");
}

/// Who may not write there; whom permissions do not bind is told by a disk that is read-only, in the tests of disks.
#[cfg(unix)]
#[tokio::test]
async fn a_folder_that_is_read_only_says_so() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o555)).unwrap();
    let binding = std::fs::write(folder.path().join("probe"), "").is_err();
    let opened = SqliteFile::open(folder.path().join("aqueduct.db")).await;
    assert_eq!(opened.is_err(), binding);
    if let Err(error) = opened {
        assert!(error.to_string().contains("cannot be opened"), "{error}");
    }
}

#[tokio::test]
async fn a_damaged_row_is_named_and_never_served() {
    for damage in [
        "update aq_rows set content = cast(substr(content, 1, 20) || x'7e' || substr(content, 22) as blob) where position = 2",
        "update aq_rows set content = substr(content, 1, 9) where position = 2",
        "update aq_rows set history = x'' where position = 2",
        "update aq_rows set attempts = attempts + 1 where position = 2",
        "update aq_rows set content = 'text' where position = 2",
        "update aq_rows set content = cast(x'ff' as text) where position = 2",
        "update aq_rows set version = 9 where position = 2",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("aqueduct.db");
        let store = SqliteStore::open(&path).await.unwrap();
        store.take_over(&claim(), None).await.unwrap();
        let put = [vec![row(1, "a")], vec![row(2, "b"), row(3, "b")], vec![row(4, "c")]].map(Op::Put);
        store.apply(&claim(), &put).await.unwrap();
        run(&path, damage).await;

        let places = async |query: &Query| {
            let listed = store.browse(query).await.unwrap();
            listed.iter().map(|listed| listed.row.place.position.0).collect::<Vec<_>>()
        };
        assert_eq!(places(&Query::default()).await, [1, 3, 4], "{damage}");
        let mut alone = Query::default();
        (alone.after, alone.limit) = (Some(row(1, "a").place), 1);
        let text = store.browse(&alone).await.unwrap_err().to_string();
        assert!(text.contains("position 2") && text.contains("orders/0"), "{text}");

        for limit in [1, 10] {
            let due = store.due(&claim(), at(1_000), limit).await.unwrap();
            let found: Vec<_> = due.heads.iter().map(|row| row.place.position.0).collect();
            assert_eq!(found, [1, 4][..limit.min(2)], "{damage}");
            assert_eq!(due.next_at, (limit == 1).then(|| at(1_000)), "{damage}");
        }
        discard(&store).await;
        assert_eq!(places(&Query::default()).await, [1, 3, 4], "a mark that is damaged is not served either");
        let due = store.due(&claim(), at(1_000), 10).await.unwrap();
        assert_eq!(due.heads.iter().map(|row| row.place.position.0).collect::<Vec<_>>(), [1, 3, 4], "{damage}");
        store.apply(&claim(), &[Op::Floor(row(2, "b").place.position)]).await.unwrap();
        assert!(store.browse(&alone).await.unwrap()[0].row.state == RowState::Parked, "{damage}");
    }
}

/// Nothing but to discard it can be done with a damaged row.
async fn discard(store: &SqliteStore) {
    let damaged = row(2, "b");
    for (action, done) in [(Action::Replay, false), (Action::Discard, true)] {
        let id = store.command(&Command::new(&listed(&damaged), action, "ann", "it is damaged")).await.unwrap();
        let answer = store.apply(&claim(), &[Op::Operate { id, refused: None, now: at(5) }]).await.unwrap();
        assert!(matches!(answer[..], [Applied::Lane { holds: true, .. }]), "{answer:?}");
        let state = store.command_result(id).await.unwrap().unwrap();
        assert_eq!(matches!(state, CommandState::Done { .. }), done, "{state:?}");
    }
}

#[tokio::test]
async fn a_row_that_is_damaged_while_it_is_tried_can_still_be_finished() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("aqueduct.db");
    let store = SqliteStore::open(&path).await.unwrap();
    store.take_over(&claim(), None).await.unwrap();
    store.apply(&claim(), &[Op::Put(vec![row(1, "a")])]).await.unwrap();
    run(&path, "update aq_rows set parked_at = 99").await;
    let failure =
        aqueduct::store::Failure { at: at(1), attempt: 1, took: std::time::Duration::ZERO, error: "x".into() };
    let update = Op::Update { row: named(&row(1, "a")), failure, to: aqueduct::store::Next::Retry(at(2)) };
    assert_eq!(store.apply(&claim(), &[update]).await.unwrap(), [Applied::Conflict]);
    let finished = store.apply(&claim(), &[Op::Finish(named(&row(1, "a")))]).await.unwrap();
    assert_eq!(finished, [Applied::Lane { holds: false, next_at: None }]);
}
