//! Fetching checkpoints, against a local server.

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

/// The name of the file that step512's weights are kept under.
fn blob_of_step512() -> Result<String> {
    Ok(sha256_file(&tiny("step512").join("model.safetensors"))?.1)
}

/// A hub with the tiny model, and a client of it with an empty cache.
struct Fixture {
    server: LocalHub,
    cache: tempfile::TempDir,
}

impl Fixture {
    fn new(server: LocalHub) -> Result<Self> {
        let cache = tempfile::tempdir()?;
        Ok(Self { server, cache })
    }

    fn tiny() -> Result<Self> {
        Self::new(LocalHub::tiny())
    }

    fn options(&self) -> HubOptions {
        self.server.options(self.cache.path())
    }

    fn hub(&self) -> Hub {
        Hub::new(self.options())
    }

    fn root(&self) -> PathBuf {
        self.cache.path().join("models--pico--tiny-neox")
    }

    /// Where a download of step512's weights is kept until it is whole.
    fn part(&self) -> Result<PathBuf> {
        let part = format!("{}.incomplete", blob_of_step512()?);
        Ok(self.root().join("blobs").join(part))
    }

    /// The ranges asked of the storage since the log was last taken; an empty list when nothing was fetched.
    fn fetched(&self) -> Vec<Option<String>> {
        let log = self.server.take_log().into_iter();
        log.filter(|request| request.path.contains("/cdn/"))
            .map(|request| request.range)
            .collect()
    }
}

#[track_caller]
fn assert_weights(dir: &Path, step: &str) {
    let name = "model.safetensors";
    assert_same(&dir.join(name), &tiny(step).join(name));
}

#[track_caller]
fn assert_same(fetched: &Path, original: &Path) {
    let (fetched, original) = (sha256_file(fetched).ok(), sha256_file(original).ok());
    assert!(original.is_some());
    assert_eq!(fetched, original);
}

#[test]
fn a_revision_is_fetched_once_and_lands_where_python_looks() -> Result<()> {
    let at = Fixture::tiny()?;
    let (server, hub) = (&at.server, at.hub());
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
    assert_eq!(dir, at.root().join("snapshots").join(&commit));
    assert_eq!(fs::read_to_string(at.root().join("refs/step512"))?, commit);
    let weights = dir.join("model.safetensors");
    assert_eq!(
        fs::read_link(&weights)?,
        PathBuf::from(format!("../../blobs/{}", blob_of_step512()?))
    );
    assert_weights(&dir, "step512");
    assert_same(&dir.join("tokenizer.json"), &tiny("tokenizer.json"));

    // the second time asks no one, nor does it offline
    assert_eq!(get(&hub, "step512")?, dir);
    let mut offline = at.options();
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
    let at = Fixture::tiny()?;
    let source = Source::hub(at.hub(), REPO);
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
    let at = Fixture::tiny()?;
    let dir = at.hub().checkpoint("old/tiny-neox", "step0", &mut |_| ())?;
    assert_weights(&dir, "step0");
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
    let repo = Revisions::from([("main".into(), revision)]);
    let at = Fixture::new(LocalHub::start([("models/pico/tiny-neox", repo)]))?;
    let dir = get(&at.hub(), "main")?;
    let shards = |dir: &Path| -> Result<()> {
        for name in map.values() {
            assert_same(&dir.join(name), &files.path().join(name));
        }
        Ok(())
    };
    shards(&dir)?;

    // a shard that went missing from the cache is fetched again
    fs::remove_file(dir.join("model-00001-of-00003.safetensors"))?;
    at.server.take_log();
    get(&at.hub(), "main")?;
    shards(&dir)?;
    assert_eq!(at.fetched(), []);
    Ok(())
}

#[test]
fn an_interrupted_download_goes_on_where_it_stopped() -> Result<()> {
    let at = Fixture::tiny()?;
    let (server, mut options) = (&at.server, at.options());
    options.tries = 1;
    let hub = Hub::new(options);
    server.fail_next("/cdn/", Fault::DropAfter(100_000));
    let err = get(&hub, "step512").err().ok_or("not interrupted")?;
    assert!(matches!(err, HubError::Network { .. }), "{err}");

    // what has arrived is kept, and is not taken for the whole
    let blob = at.root().join("blobs").join(blob_of_step512()?);
    assert!(!blob.exists());
    assert_eq!(
        fs::metadata(blob.with_extension("incomplete"))?.len(),
        100_000
    );
    assert!(!at.root().join("refs/step512").exists());

    server.take_log();
    let dir = get(&hub, "step512")?;
    assert_eq!(at.fetched(), [Some("bytes=100000-".into())]);
    assert_weights(&dir, "step512");
    Ok(())
}

/// More interruptions than tries, but each brings something.
#[test]
fn progress_is_worth_another_try() -> Result<()> {
    let at = Fixture::tiny()?;
    let (server, mut options) = (&at.server, at.options());
    options.tries = 2;
    for _ in 0..6 {
        server.fail_next("/cdn/", Fault::DropAfter(50_000));
    }
    let dir = get(&Hub::new(options), "step512")?;
    assert_weights(&dir, "step512");
    Ok(())
}

#[test]
fn a_server_that_ignores_ranges_stalls_or_trickles() -> Result<()> {
    let at = Fixture::tiny()?;
    let (server, mut options) = (&at.server, at.options());
    options.timeout = Duration::from_millis(300);
    let hub = Hub::new(options);
    server.fail_next("/cdn/", Fault::DropAfter(70_000));
    server.fail_next("/cdn/", Fault::IgnoreRange);
    let dir = get(&hub, "step512")?;
    assert_weights(&dir, "step512");

    server.fail_next("/cdn/", Fault::StallAfter(70_000));
    let dir = get(&hub, "step64")?;
    assert_weights(&dir, "step64");

    server.fail_next("/cdn/", Fault::Slow);
    let dir = get(&hub, "step0")?;
    assert_weights(&dir, "step0");
    Ok(())
}

/// A part file that is longer than the file, or complete already.
#[test]
fn odd_part_files() -> Result<()> {
    let at = Fixture::tiny()?;
    let (server, hub) = (&at.server, at.hub());
    let original = tiny("step512").join("model.safetensors");
    let part = at.part()?;
    fs::create_dir_all(part.parent().ok_or("no parent")?)?;
    fs::write(&part, vec![0; 10_000_000])?;
    let dir = get(&hub, "step512")?;
    assert_same(&dir.join("model.safetensors"), &original);

    fs::remove_dir_all(at.root())?;
    fs::create_dir_all(part.parent().ok_or("no parent")?)?;
    fs::copy(&original, &part)?;
    server.take_log();
    let dir = get(&hub, "step512")?;
    assert_same(&dir.join("model.safetensors"), &original);
    assert_eq!(at.fetched(), []);
    Ok(())
}

#[test]
fn a_damaged_download_is_refused_and_deleted() -> Result<()> {
    let at = Fixture::tiny()?;
    let (server, hub) = (&at.server, at.hub());
    server.fail_next("/cdn/", Fault::FlipBit);
    let err = get(&hub, "step512").err().ok_or("accepted")?;
    let expected = blob_of_step512()?;
    assert!(
        err.to_string().starts_with(&format!(
            "`model.safetensors` arrived damaged: expected SHA-256 {expected}, found "
        )),
        "{err}"
    );
    let blobs: Vec<_> = fs::read_dir(at.root().join("blobs"))?.flatten().collect();
    assert!(
        !blobs
            .iter()
            .any(|blob| blob.file_name().to_string_lossy().contains(&expected))
    );
    let dir = get(&hub, "step512")?;
    assert_weights(&dir, "step512");
    Ok(())
}

#[test]
fn busy_servers_are_waited_for() -> Result<()> {
    let at = Fixture::tiny()?;
    let (server, hub) = (&at.server, at.hub());
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
    let at = Fixture::new(LocalHub::start([("models/gated/model", tiny_revisions())]))?;
    let server = &at.server;
    let get =
        |options: HubOptions| Hub::new(options).checkpoint("gated/model", "step0", &mut |_| ());

    let err = get(at.options()).err().ok_or("accepted")?;
    assert_eq!(
        err.to_string().replace(&server.endpoint, "HUB"),
        "access to `gated/model` was refused (401): it is gated, private or not there, and no token was given: \
         set HF_TOKEN, or name a file that holds one; if it is gated, accept its terms at HUB/gated/model"
    );

    // a token that the hub does not take
    let mut options = at.options();
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
    let file = at.cache.path().join("hf_token.txt");
    fs::write(&file, format!("{TOKEN}\n"))?;
    let mut options = at.options();
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
    let at = Fixture::tiny()?;
    let (server, hub) = (&at.server, at.hub());
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
    let at = Fixture::tiny()?;
    let mut options = at.options();
    options.offline = true;
    let err = get(&Hub::new(options.clone()), "step512")
        .err()
        .ok_or("found")?;
    assert_eq!(
        err.to_string()
            .replace(&at.cache.path().display().to_string(), "CACHE"),
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
    let at = Fixture::tiny()?;
    let server = &at.server;
    server.fail_next("/cdn/", Fault::Slow);
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let hub = at.hub();
            std::thread::spawn(move || get(&hub, "step512"))
        })
        .collect();
    for client in clients {
        let dir = client.join().map_err(|_| "a client panicked")??;
        assert_weights(&dir, "step512");
    }
    assert_eq!(at.fetched().len(), 1);
    Ok(())
}

/// `/dev/full` is a disk without room.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named() -> Result<()> {
    let at = Fixture::tiny()?;
    let part = at.part()?;
    fs::create_dir_all(part.parent().ok_or("no parent")?)?;
    std::os::unix::fs::symlink("/dev/full", &part)?;
    let err = get(&at.hub(), "step512").err().ok_or("found")?;
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
fn a_repository_that_names_files_outside_itself() -> Result<()> {
    let evil = BTreeMap::from([("../../../evil.json".to_owned(), tiny("tokenizer.json"))]);
    let repo = Revisions::from([("main".into(), evil)]);
    let at = Fixture::new(LocalHub::start([("models/pico/evil", repo)]))?;
    let err = at
        .hub()
        .checkpoint("pico/evil", "main", &mut |_| ())
        .err()
        .ok_or("accepted")?;
    assert!(
        err.to_string()
            .ends_with("file name `../../../evil.json` leaves the repository"),
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
