//! Fetching checkpoints and datasets, against a local server.

mod local_hub;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use checkpoint_source::{Hub, HubError, HubOptions, Source, Token};
use local_hub::{Fault, LocalHub, Revisions, TOKEN, commit_of, tiny, tiny_revisions};
use model_conventions::sha256_file;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const REPO: &str = "pico/tiny-neox";

fn get(hub: &Hub, revision: &str) -> std::result::Result<PathBuf, HubError> {
    hub.checkpoint(REPO, revision, &mut |_| ())
}

fn root(cache: &Path) -> PathBuf {
    cache.join("models--pico--tiny-neox")
}

/// The name of the file that step512's weights are kept under.
fn blob_of_step512() -> Result<String> {
    Ok(sha256_file(&tiny("step512").join("model.safetensors"))?.1)
}

#[track_caller]
fn assert_same(fetched: &Path, original: &Path) {
    let (fetched, original) = (sha256_file(fetched).ok(), sha256_file(original).ok());
    assert!(original.is_some());
    assert_eq!(fetched, original);
}

#[test]
fn a_revision_is_fetched_once_and_lands_where_python_looks() -> Result<()> {
    let server = LocalHub::tiny();
    let cache = tempfile::tempdir()?;
    let hub = Hub::new(server.options(cache.path()));
    let mut seen: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let dir = hub.checkpoint(REPO, "step512", &mut |transfer| {
        seen.insert(transfer.file.to_owned(), (transfer.done, transfer.total));
    })?;

    // only what is needed, with its progress
    let names: Vec<&str> = seen.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["config.json", "model.safetensors", "tokenizer.json"]
    );
    assert!(
        seen.values()
            .all(|(done, total)| done == total && *total > 0)
    );
    assert!(
        !server
            .take_log()
            .iter()
            .any(|request| request.path.contains("msgpack"))
    );

    // the layout of huggingface_hub
    let commit = commit_of("step512");
    assert_eq!(dir, root(cache.path()).join("snapshots").join(&commit));
    assert_eq!(
        fs::read_to_string(root(cache.path()).join("refs/step512"))?,
        commit
    );
    let weights = dir.join("model.safetensors");
    assert_eq!(
        fs::read_link(&weights)?,
        PathBuf::from(format!("../../blobs/{}", blob_of_step512()?))
    );
    assert_same(&weights, &tiny("step512").join("model.safetensors"));
    assert_same(&dir.join("tokenizer.json"), &tiny("tokenizer.json"));

    // the second time asks no one, nor does it offline
    assert_eq!(get(&hub, "step512")?, dir);
    let mut offline = server.options(cache.path());
    offline.offline = true;
    let offline = Hub::new(offline);
    assert_eq!(get(&offline, "step512")?, dir);
    assert_eq!(get(&offline, &commit)?, dir);
    assert_eq!(offline.revisions(REPO)?, ["step512"]);
    assert!(server.take_log().is_empty());
    Ok(())
}

#[test]
fn pytorch_bin_when_there_is_no_other() -> Result<()> {
    let server = LocalHub::tiny();
    let cache = tempfile::tempdir()?;
    let source = Source::hub(Hub::new(server.options(cache.path())), REPO);
    let dir = source.checkpoint(Some("step1000"), &mut |_| ())?;
    for name in ["pytorch_model.bin", "config.json"] {
        assert_same(&dir.join(name), &tiny("step1000").join(name));
    }
    assert_eq!(
        source.revisions()?.first().map(String::as_str),
        Some("step0")
    );
    Ok(())
}

#[test]
fn a_renamed_repository_is_followed() -> Result<()> {
    let server = LocalHub::tiny();
    let cache = tempfile::tempdir()?;
    let hub = Hub::new(server.options(cache.path()));
    let dir = hub.checkpoint("old/tiny-neox", "step0", &mut |_| ())?;
    assert_same(
        &dir.join("model.safetensors"),
        &tiny("step0").join("model.safetensors"),
    );
    Ok(())
}

#[test]
fn shards_are_found_through_their_index() -> Result<()> {
    let files = tempfile::tempdir()?;
    // Nothing here looks into a shard, so that any bytes will do.
    let mut map = BTreeMap::new();
    let mut revision = BTreeMap::new();
    for (index, tensor) in ["a.weight", "b.weight", "b.bias"].into_iter().enumerate() {
        let name = format!("model-0000{index}-of-00003.safetensors");
        fs::write(files.path().join(&name), vec![index as u8; 70_000])?;
        map.insert(tensor, name.clone());
        revision.insert(name.clone(), files.path().join(&name));
    }
    let index = files.path().join("index");
    fs::write(&index, serde_json::json!({"weight_map": map}).to_string())?;
    revision.insert("model.safetensors.index.json".into(), index);
    revision.insert("config.json".into(), tiny("step0").join("config.json"));
    let server = LocalHub::start([(
        "models/pico/tiny-neox",
        Revisions::from([("main".into(), revision)]),
    )]);
    let cache = tempfile::tempdir()?;
    let dir = get(&Hub::new(server.options(cache.path())), "main")?;
    let shards = |dir: &Path| -> Result<()> {
        for name in map.values() {
            assert_same(&dir.join(name), &files.path().join(name));
        }
        Ok(())
    };
    shards(&dir)?;

    // a shard that went missing from the cache is fetched again
    fs::remove_file(dir.join("model-00001-of-00003.safetensors"))?;
    server.take_log();
    get(&Hub::new(server.options(cache.path())), "main")?;
    shards(&dir)?;
    assert!(
        !server
            .take_log()
            .iter()
            .any(|request| request.path.contains("/cdn/"))
    );
    Ok(())
}

#[test]
fn an_interrupted_download_goes_on_where_it_stopped() -> Result<()> {
    let server = LocalHub::tiny();
    let cache = tempfile::tempdir()?;
    let mut options = server.options(cache.path());
    options.tries = 1;
    let hub = Hub::new(options);
    server.fail_next("/cdn/", Fault::DropAfter(100_000));
    let err = get(&hub, "step512").err().ok_or("not interrupted")?;
    assert!(matches!(err, HubError::Network { .. }), "{err}");

    // what has arrived is kept, and is not taken for the whole
    let blob = root(cache.path()).join("blobs").join(blob_of_step512()?);
    assert!(!blob.exists());
    assert_eq!(
        fs::metadata(blob.with_extension("incomplete"))?.len(),
        100_000
    );
    assert!(!root(cache.path()).join("refs/step512").exists());

    server.take_log();
    let dir = get(&hub, "step512")?;
    let log = server.take_log();
    let ranges: Vec<_> = log
        .iter()
        .filter(|request| request.path.contains("/cdn/"))
        .map(|request| request.range.as_deref())
        .collect();
    assert_eq!(ranges, [Some("bytes=100000-")]);
    assert_same(
        &dir.join("model.safetensors"),
        &tiny("step512").join("model.safetensors"),
    );
    Ok(())
}

/// More interruptions than tries, but each brings something.
#[test]
fn progress_is_worth_another_try() -> Result<()> {
    let server = LocalHub::tiny();
    let cache = tempfile::tempdir()?;
    let mut options = server.options(cache.path());
    options.tries = 2;
    for _ in 0..6 {
        server.fail_next("/cdn/", Fault::DropAfter(50_000));
    }
    let dir = get(&Hub::new(options), "step512")?;
    assert_same(
        &dir.join("model.safetensors"),
        &tiny("step512").join("model.safetensors"),
    );
    Ok(())
}

#[test]
fn a_server_that_ignores_ranges_stalls_or_trickles() -> Result<()> {
    let server = LocalHub::tiny();
    let cache = tempfile::tempdir()?;
    let mut options = server.options(cache.path());
    options.timeout = Duration::from_millis(300);
    let hub = Hub::new(options);
    server.fail_next("/cdn/", Fault::DropAfter(70_000));
    server.fail_next("/cdn/", Fault::IgnoreRange);
    let dir = get(&hub, "step512")?;
    assert_same(
        &dir.join("model.safetensors"),
        &tiny("step512").join("model.safetensors"),
    );

    server.fail_next("/cdn/", Fault::StallAfter(70_000));
    let dir = get(&hub, "step64")?;
    assert_same(
        &dir.join("model.safetensors"),
        &tiny("step64").join("model.safetensors"),
    );

    server.fail_next("/cdn/", Fault::Slow);
    let dir = get(&hub, "step0")?;
    assert_same(
        &dir.join("model.safetensors"),
        &tiny("step0").join("model.safetensors"),
    );
    Ok(())
}

/// A part file that is longer than the file, or complete already.
#[test]
fn odd_part_files() -> Result<()> {
    let server = LocalHub::tiny();
    let cache = tempfile::tempdir()?;
    let hub = Hub::new(server.options(cache.path()));
    let original = tiny("step512").join("model.safetensors");
    let part = root(cache.path())
        .join("blobs")
        .join(format!("{}.incomplete", blob_of_step512()?));
    fs::create_dir_all(part.parent().ok_or("no parent")?)?;
    fs::write(&part, vec![0; 10_000_000])?;
    let dir = get(&hub, "step512")?;
    assert_same(&dir.join("model.safetensors"), &original);

    fs::remove_dir_all(root(cache.path()))?;
    fs::create_dir_all(part.parent().ok_or("no parent")?)?;
    fs::copy(&original, &part)?;
    server.take_log();
    let dir = get(&hub, "step512")?;
    assert_same(&dir.join("model.safetensors"), &original);
    assert!(
        !server
            .take_log()
            .iter()
            .any(|request| request.path.contains("/cdn/"))
    );
    Ok(())
}

#[test]
fn a_damaged_download_is_refused_and_deleted() -> Result<()> {
    let server = LocalHub::tiny();
    let cache = tempfile::tempdir()?;
    let hub = Hub::new(server.options(cache.path()));
    server.fail_next("/cdn/", Fault::FlipBit);
    let err = get(&hub, "step512").err().ok_or("accepted")?;
    let expected = blob_of_step512()?;
    assert!(
        err.to_string().starts_with(&format!(
            "`model.safetensors` arrived damaged: expected SHA-256 {expected}, found "
        )),
        "{err}"
    );
    let blobs: Vec<_> = fs::read_dir(root(cache.path()).join("blobs"))?
        .flatten()
        .collect();
    assert!(
        !blobs
            .iter()
            .any(|blob| blob.file_name().to_string_lossy().contains(&expected))
    );
    let dir = get(&hub, "step512")?;
    assert_same(
        &dir.join("model.safetensors"),
        &tiny("step512").join("model.safetensors"),
    );
    Ok(())
}

#[test]
fn busy_servers_are_waited_for() -> Result<()> {
    let server = LocalHub::tiny();
    let cache = tempfile::tempdir()?;
    let hub = Hub::new(server.options(cache.path()));
    server.fail_next("/api/", Fault::Status(429, "Retry-After: 0\r\n"));
    server.fail_next("config.json", Fault::Status(503, ""));
    server.fail_next("/cdn/", Fault::Status(429, "Retry-After: 0\r\n"));
    get(&hub, "step512")?;

    for _ in 0..5 {
        server.fail_next("/api/", Fault::Status(429, "Retry-After: 0\r\n"));
    }
    let err = get(&hub, "step64").err().ok_or("accepted")?;
    let text = err.to_string();
    assert!(
        text.ends_with("still answered 429 after 5 tries; try again later"),
        "{text}"
    );
    Ok(())
}

#[test]
fn gated_repositories_want_a_token_that_is_never_shown() -> Result<()> {
    let server = LocalHub::start([("models/gated/model", tiny_revisions())]);
    let cache = tempfile::tempdir()?;
    let get =
        |options: HubOptions| Hub::new(options).checkpoint("gated/model", "step0", &mut |_| ());

    let err = get(server.options(cache.path())).err().ok_or("accepted")?;
    assert_eq!(
        err.to_string().replace(&server.endpoint, "HUB"),
        "access to `gated/model` was refused (401): it is gated, private or not there, and no token was given: \
         set HF_TOKEN, or name a file that holds one; if it is gated, accept its terms at HUB/gated/model"
    );

    // a token that the hub does not take
    let mut options = server.options(cache.path());
    options.token = Token::new("hf_wrongsecret", "a test")?;
    let shown = format!("{options:?}");
    let err = get(options).err().ok_or("accepted")?;
    for text in [shown, format!("{err} {err:?}")] {
        assert!(!text.contains("secret"), "{text}");
    }
    assert!(
        err.to_string()
            .contains("the token given does not allow it")
    );

    // the right one, from a file; it goes to the hub and not to the storage it redirects to
    let file = cache.path().join("hf_token.txt");
    fs::write(&file, format!("{TOKEN}\n"))?;
    let mut options = server.options(cache.path());
    options.token = HubOptions::from_vars(Some(&file), |_| Some("/nowhere".into()))?.token;
    server.take_log();
    get(options)?;
    let log = server.take_log();
    assert!(
        log.iter()
            .all(|request| request.with_token != request.path.starts_with("/cdn/"))
    );
    Ok(())
}

#[test]
fn what_is_not_there() -> Result<()> {
    let server = LocalHub::tiny();
    let cache = tempfile::tempdir()?;
    let hub = Hub::new(server.options(cache.path()));
    let say = |repo: &str, revision: &str| {
        hub.checkpoint(repo, revision, &mut |_| ())
            .err()
            .map_or("found".to_owned(), |err| {
                err.to_string().replace(&server.endpoint, "HUB")
            })
    };
    assert_eq!(
        say(REPO, "step3000"),
        "`pico/tiny-neox` has no revision `step3000`; nearest: step2000, step4000, step1000"
    );
    assert_eq!(
        say("pico/giant-neox", "main"),
        "repository `pico/giant-neox` not found at HUB/pico/giant-neox"
    );
    assert_eq!(
        say("../../etc", "main"),
        "`../../etc` is not the name of a repository"
    );
    assert_eq!(
        say(REPO, "../main"),
        "`../main` is not the name of a revision"
    );
    assert!(
        server
            .take_log()
            .iter()
            .all(|request| !request.path.contains(".."))
    );
    Ok(())
}

#[test]
fn no_network_and_not_cached() -> Result<()> {
    let cache = tempfile::tempdir()?;
    let mut options = LocalHub::tiny().options(cache.path());
    options.offline = true;
    let err = get(&Hub::new(options.clone()), "step512")
        .err()
        .ok_or("found")?;
    assert_eq!(
        err.to_string()
            .replace(&cache.path().display().to_string(), "CACHE"),
        "`pico/tiny-neox` at `step512` is not complete in the cache `CACHE` (missing: the revision itself) \
         and HF_HUB_OFFLINE forbids fetching it; where there is network and with the same HF_HOME, run: \
         hf download pico/tiny-neox --revision step512 --exclude '*.msgpack' '*.h5'"
    );

    options.offline = false;
    options.endpoint = "http://127.0.0.1:1".into(); // no one listens there
    let err = get(&Hub::new(options), "step512").err().ok_or("found")?;
    assert!(
        err.to_string().starts_with("no answer from `http://127.0.0.1:1/api/models/pico/tiny-neox/revision/step512`; to fetch ahead"),
        "{err}"
    );
    Ok(())
}

/// Two clients at once: the second waits for the first and finds its work done.
#[test]
fn two_processes_share_one_download() -> Result<()> {
    let server = LocalHub::tiny();
    let cache = tempfile::tempdir()?;
    server.fail_next("/cdn/", Fault::Slow);
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let hub = Hub::new(server.options(cache.path()));
            std::thread::spawn(move || get(&hub, "step512"))
        })
        .collect();
    for client in clients {
        let dir = client.join().map_err(|_| "a client panicked")??;
        assert_same(
            &dir.join("model.safetensors"),
            &tiny("step512").join("model.safetensors"),
        );
    }
    let log = server.take_log();
    assert_eq!(
        log.iter()
            .filter(|request| request.path.contains("/cdn/"))
            .count(),
        1
    );
    Ok(())
}

/// `/dev/full` is a disk without room.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named() -> Result<()> {
    let server = LocalHub::tiny();
    let cache = tempfile::tempdir()?;
    let part = root(cache.path())
        .join("blobs")
        .join(format!("{}.incomplete", blob_of_step512()?));
    fs::create_dir_all(part.parent().ok_or("no parent")?)?;
    std::os::unix::fs::symlink("/dev/full", &part)?;
    let err = get(&Hub::new(server.options(cache.path())), "step512")
        .err()
        .ok_or("found")?;
    let bytes = fs::metadata(tiny("step512").join("model.safetensors"))?.len();
    assert_eq!(
        err.to_string(),
        format!(
            "disk full while writing `{}` of {bytes} bytes; what has arrived is kept",
            part.display()
        )
    );
    Ok(())
}

#[test]
fn datasets_bring_their_parquet_files() -> Result<()> {
    let files = tempfile::tempdir()?;
    let mut revision = BTreeMap::new();
    for name in [
        "data/train-00001.parquet",
        "data/train-00000.parquet",
        "README.md",
    ] {
        let path = files.path().join(name.replace('/', "_"));
        fs::write(&path, name)?;
        revision.insert(name.to_owned(), path);
    }
    let empty = BTreeMap::from([("README.md".to_owned(), files.path().join("README.md"))]);
    let revisions = Revisions::from([("main".into(), revision), ("empty".into(), empty)]);
    let server = LocalHub::start([("datasets/pico/texts", revisions)]);
    let cache = tempfile::tempdir()?;
    let hub = Hub::new(server.options(cache.path()));
    let paths = hub.dataset_parquet("pico/texts", "main", &mut |_| ())?;
    let contents: Vec<String> = paths
        .iter()
        .map(fs::read_to_string)
        .collect::<std::io::Result<_>>()?;
    assert_eq!(
        contents,
        ["data/train-00000.parquet", "data/train-00001.parquet"]
    );

    let mut offline = server.options(cache.path());
    offline.offline = true;
    server.take_log();
    assert_eq!(
        Hub::new(offline).dataset_parquet("pico/texts", "main", &mut |_| ())?,
        paths
    );
    assert!(server.take_log().is_empty());

    let err = hub
        .dataset_parquet("pico/texts", "empty", &mut |_| ())
        .err()
        .ok_or("found")?;
    assert!(err.to_string().contains("refs/convert/parquet"), "{err}");
    Ok(())
}

#[test]
fn a_repository_that_names_files_outside_itself() -> Result<()> {
    let evil = BTreeMap::from([("../../../evil.parquet".to_owned(), tiny("tokenizer.json"))]);
    let server = LocalHub::start([(
        "datasets/pico/evil",
        Revisions::from([("main".into(), evil)]),
    )]);
    let cache = tempfile::tempdir()?;
    let hub = Hub::new(server.options(cache.path()));
    let err = hub
        .dataset_parquet("pico/evil", "main", &mut |_| ())
        .err()
        .ok_or("accepted")?;
    assert!(
        err.to_string()
            .ends_with("file name `../../../evil.parquet` leaves the repository"),
        "{err}"
    );
    Ok(())
}

#[test]
fn the_environment_decides_as_for_python() -> Result<()> {
    let home = tempfile::tempdir()?;
    let at = |name: &str| home.path().join(name).display().to_string();
    let options = |vars: &[(&str, String)]| {
        HubOptions::from_vars(None, |name| {
            vars.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.clone())
        })
    };
    let plain = options(&[("HOME", at("me"))])?;
    assert_eq!(plain.cache, home.path().join("me/.cache/huggingface/hub"));
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert!(!plain.offline && plain.token.is_none());

    fs::create_dir(home.path().join("hf"))?;
    fs::write(home.path().join("hf/token"), "hf_stored\n")?;
    let set = options(&[
        ("HOME", at("me")),
        ("HF_HOME", at("hf")),
        ("HF_ENDPOINT", "http://mirror/".into()),
        ("HF_HUB_OFFLINE", "1".into()),
    ])?;
    assert_eq!(set.cache, home.path().join("hf/hub"));
    assert_eq!(set.endpoint, "http://mirror");
    assert!(set.offline);
    assert_eq!(set.token, Token::new("hf_stored", "a test")?);

    let both = options(&[
        ("HF_HOME", at("hf")),
        ("HF_HUB_CACHE", at("c")),
        ("HF_TOKEN", "hf_var".into()),
    ])?;
    assert_eq!(both.cache, home.path().join("c"));
    assert_eq!(both.token, Token::new("hf_var", "a test")?);

    let err = options(&[("HOME", at("me")), ("HF_TOKEN", "two words".into())])
        .err()
        .ok_or("accepted")?;
    assert_eq!(
        err.to_string(),
        "the token from HF_TOKEN is not one: it holds spaces or control characters"
    );
    let err = options(&[]).err().ok_or("accepted")?;
    assert_eq!(err.to_string(), "no folder for the cache: set HF_HOME");
    Ok(())
}

/// The hub publishes hashes: what an audit needs for a first look costs two small requests and no download.
#[test]
fn hashes_of_weights_are_had_without_fetching() -> Result<()> {
    let server = LocalHub::tiny();
    let cache = tempfile::tempdir()?;
    let hub = Hub::new(server.options(cache.path()));
    for (step, name) in [
        ("step512", "model.safetensors"),
        ("step1000", "pytorch_model.bin"),
    ] {
        let hashes = hub.weight_hashes(REPO, step)?;
        let (bytes, sha256) = sha256_file(&tiny(step).join(name))?;
        assert_eq!(hashes.len(), 1);
        assert_eq!(hashes[0].name, name);
        assert_eq!((hashes[0].bytes, &hashes[0].sha256), (bytes, &sha256));
    }
    let log = server.take_log();
    assert!(log.iter().all(|request| request.path.starts_with("/api/")));

    let err = hub.weight_hashes(REPO, "step3").unwrap_err();
    assert!(matches!(err, HubError::NoRevision { .. }), "{err}");
    Ok(())
}
