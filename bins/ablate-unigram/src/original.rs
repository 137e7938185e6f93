//! `--original`: a configuration of the Python packages of Liu et al. (2025) or Stolfo et al. (2024), taken as it is.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use job_kit::{WithHint, config::group_choices};
use serde_yaml::{Mapping, Value};

/// What has no counterpart, and why nothing is lost.
const IGNORED: &[(&str, &str)] = &[
    ("chdir", "paths are relative to where you are"),
    (
        "batch_size",
        "blocks of work are as large as `ablation.memory_mib` lets them be",
    ),
    ("chunk_size", "see `batch_size`"),
    ("micro_batch_size", "see `batch_size`"),
    ("process_neurons_in_chunks", "see `batch_size`"),
    ("max_gpu_memory", "see `ablation.memory_mib`"),
    ("memory_efficient", "see `ablation.memory_mib`"),
    ("cpu_offload", "see `ablation.memory_mib`"),
    ("gradient_checkpointing", "nothing is trained"),
    (
        "transformers_cache_dir",
        "the hub's own cache is used (`HF_HOME`)",
    ),
    ("use_log2_entropy", "entropies are in nats"),
    ("vector", "`semantics` says what is frozen"),
    ("apply_elbow", "`min_freq` and `max_freq` say it"),
    ("debug", "see `corpus.rows` and `ablation.neurons`"),
    ("defaults", "of Hydra"),
    ("hydra", "of Hydra"),
];

/// The overrides that a file of theirs comes to, but for what was typed; tells which keys became what, and which are not used.
pub(crate) fn overrides(
    path: &Path,
    typed: &[String],
    config_dir: &Path,
) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("failed to read `{}` (`--original`)", path.display()))?;
    let theirs: Mapping = serde_yaml::from_str(&text)
        .with_context(|| format!("`{}` is no YAML of keys and values", path.display()))?;
    if !["dataset", "data_range_end", "k", "neuron_range"]
        .iter()
        .any(|key| theirs.contains_key(key))
    {
        bail!(
            "`{}` is no configuration of the Python packages: it has none of `dataset`, `data_range_end`, `k` and `neuron_range`; a configuration of this program is given as `--config`",
            path.display()
        );
    }
    let file = Original { theirs, path };
    let mut ours = file.translate(config_dir, typed)?;
    // What is typed for a key, or for the group that it is of, takes its place; but rows are of any text.
    let typed: Vec<&str> = typed
        .iter()
        .map(|word| word.trim_start_matches(['+', '~']))
        .map(|word| word.split('=').next().unwrap_or(word))
        .collect();
    let belongs = |key: &str, typed: &str| {
        key == typed || (typed != "corpus" && key.starts_with(&format!("{typed}.")))
    };
    ours.retain(|text| {
        let key = text.split('=').next().unwrap_or(text);
        let group = typed.iter().any(|typed| {
            belongs(key, typed) || (key == "model" && ["model.path", "model.repo"].contains(typed))
        });
        !group
    });
    tracing::info!("`{}` is taken as: {}", path.display(), ours.join(" "));
    Ok(ours)
}

struct Original<'p> {
    theirs: Mapping,
    path: &'p Path,
}

impl Original<'_> {
    fn translate(&self, config_dir: &Path, typed: &[String]) -> anyhow::Result<Vec<String>> {
        let is_typed = |group: &str| {
            typed.iter().any(|word| {
                word.strip_prefix(group)
                    .is_some_and(|rest| rest.starts_with(['=', '.']))
            })
        };
        let mut ours = vec![
            "corpus.context_length=256".to_owned(),
            "output.format=feather".to_owned(),
        ];
        let (mut rows, mut unused) = ((None, None), Vec::new());
        let mut of_tails = false;
        for (key, value) in &self.theirs {
            let key = key.as_str().unwrap_or_default();
            if value.is_null() {
                continue;
            }
            match key {
                "model" => ours.extend(model(self.text(key)?, config_dir, is_typed("frequency"))?),
                "dataset" if is_typed("corpus") => {}
                "dataset" => {
                    let dataset = self.text(key)?;
                    return Err(anyhow::anyhow!("`dataset: {dataset}` names a data set of the hub, and this program reads text from files")).hint(
                        format!("download `{dataset}`, and name its file (Parquet, JSON lines, text): corpus.path=FILE"),
                    );
                }
                "data_range_start" => rows.0 = Some(self.number(key)?),
                "data_range_end" => rows.1 = Some(self.number(key)?),
                "k" => ours.push(format!("ablation.sequences={}", self.number(key)?)),
                "seed" => ours.push(format!("seed={}", self.number(key)?)),
                "neuron_range" => {
                    let range = self.text_or_number(key)?;
                    let Some((first, end)) = range.split_once('-') else {
                        bail!(
                            "`neuron_range` is `{range}` in `{}`, expected two numbers like `0-100`",
                            self.path.display()
                        );
                    };
                    ours.push(format!("ablation.neurons={}..{}", first.trim(), end.trim()));
                }
                "dry_run" if value.as_bool() == Some(true) => {
                    ours.push("ablation.neurons=0..10".to_owned());
                }
                "dry_run" => {}
                "output_dir" => ours.push(format!("output.dir={}", self.text(key)?)),
                "device" if self.text(key)?.starts_with("cuda") => {
                    ours.push("model.device=auto".to_owned());
                }
                "device" => ours.push(format!("model.device={}", self.text(key)?)),
                "hf_token_path" => {
                    let token = self.text(key)?;
                    match Path::new(token).is_file() && is_typed("model.repo") {
                        true => ours.push(format!("model.token_file={token}")),
                        false => unused.push(format!("{key} (public models need none)")),
                    }
                }
                "ablation_mode" => of_tails |= self.text(key)?.starts_with("longtail"),
                "min_freq" => ours.push(format!("band.lower={}", self.text_or_number(key)?)),
                "max_freq" => ours.push(format!("band.upper={}", self.text_or_number(key)?)),
                "window_size" if self.theirs.values().any(|v| v.as_str() == Some("elbow")) => {
                    ours.push(format!("band.window={}", self.number(key)?));
                }
                "window_size" => unused.push(format!("{key} (no bound is an elbow)")),
                "tail_threshold" if self.theirs.contains_key("max_freq") => {
                    unused.push(format!("{key} (`min_freq` and `max_freq` say it)"));
                }
                "tail_threshold" => {
                    tracing::warn!(
                        "`tail_threshold` meant different things in different versions, and is not used: the band is `band=tail` (from the elbow up to 20 %) unless `band.lower` and `band.upper` are given"
                    );
                }
                _ => match IGNORED.iter().find(|(known, _)| *known == key) {
                    Some((_, why)) => unused.push(format!("{key} ({why})")),
                    None => tracing::warn!(
                        "`{key}` of `{}` is not known, and not used",
                        self.path.display()
                    ),
                },
            }
        }
        match rows {
            (first, Some(end)) => ours.push(format!("corpus.rows={}..{end}", first.unwrap_or(0))),
            (Some(first), None) => bail!(
                "`{}` has `data_range_start: {first}` without `data_range_end`",
                self.path.display()
            ),
            (None, None) => {}
        }
        match of_tails {
            true => ours.extend(["semantics=liu2025".to_owned(), "band=tail".to_owned()]),
            // Stolfo et al. have no band.
            false => ours.extend(["semantics=stolfo2024".to_owned(), "band=none".to_owned()]),
        }
        if !unused.is_empty() {
            tracing::info!("not used: {}", unused.join(", "));
        }
        Ok(ours)
    }

    fn text(&self, key: &str) -> anyhow::Result<&str> {
        let found = self.theirs.get(key).and_then(Value::as_str);
        found.with_context(|| format!("`{key}` of `{}` is no text", self.path.display()))
    }

    fn number(&self, key: &str) -> anyhow::Result<u64> {
        let found = self.theirs.get(key).and_then(Value::as_u64);
        found.with_context(|| {
            format!(
                "`{key}` of `{}` is no whole number, 0 or more",
                self.path.display()
            )
        })
    }

    fn text_or_number(&self, key: &str) -> anyhow::Result<String> {
        match self.theirs.get(key).and_then(Value::as_f64) {
            Some(number) => Ok(number.to_string()),
            None => Ok(self.text(key)?.to_owned()),
        }
    }
}

/// A model by the name that TransformerLens or the hub has for it: a choice of `model` where there is one, else a repository.
fn model(name: &str, config_dir: &Path, counts: bool) -> anyhow::Result<Vec<String>> {
    let short = name.rsplit('/').next().unwrap_or(name).to_lowercase();
    // Pythia on deduplicated text is what the choices are of.
    let choice = match short.strip_suffix("-deduped") {
        Some(pythia) => pythia.to_owned(),
        None if short.starts_with("pythia-") => format!("{short}-with-duplicates"),
        None if short == "gpt2-small" => "gpt2".to_owned(),
        None => short.clone(),
    };
    let known = group_choices(config_dir, "model").contains(&choice);
    let mut ours = match known {
        true => vec![format!("model={choice}")],
        false if name.contains('/') => vec![format!("model.repo={name}")],
        false => bail!(
            "`model: {name}` is no choice of `model` and no repository: set model.repo=OWNER/NAME or model.path=FOLDER"
        ),
    };
    match short.starts_with("pythia-") {
        true => ours.push("frequency=pythia".to_owned()),
        false if counts => {}
        false => {
            return Err(anyhow::anyhow!("there are no token counts for `model: {name}`")).hint(
                "count a text with its tokenizer (select-longtail), and give them as frequency.counts=FILE",
            );
        }
    }
    Ok(ours)
}
