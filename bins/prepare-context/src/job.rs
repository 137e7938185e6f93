//! A run from configuration to files.

use std::{
    collections::HashMap,
    io::Write,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, bail};
use input_files::{Format, TableReader};
use job_kit::{OutputDir, Progress, RunRecord};
use longtail_corpus::{
    CorpusReader, FoundContexts, KnownTexts, ReadOptions, TextUnit, find_contexts,
};
use text_inputs::{CorpusConfig, Norms, Reading};

use crate::{
    JOB, VERSION,
    config::{PrepareConfig, WordsConfig},
    tables,
};

/// All files that a run writes.
const OUTPUTS: [&str; 3] = ["contexts.json", "contexts.parquet", "words.parquet"];

pub(crate) fn run(config: &PrepareConfig, resolved: &serde_json::Value) -> anyhow::Result<()> {
    let out = OutputDir::create(&config.output.dir, JOB, resolved, OUTPUTS)?;
    let mut record = RunRecord::new(JOB, VERSION, resolved);
    record.seed = Some(config.seed);

    let words = words(&config.words, &mut record)?;
    let known = match &config.exclude {
        Some(corpus) => Some(known_texts(corpus, &mut record)?),
        None => None,
    };
    let mut found = search(config, &words, known.as_ref(), &mut record)?;
    match &config.norms {
        Some(norms) => {
            let table = Norms::read(norms)?;
            record.input(&norms.path)?;
            for word in &mut found.words {
                word.zipf = table.zipf(&word.word);
            }
        }
        None => {
            let zipf = zipf_values(&config.words)?;
            for word in &mut found.words {
                word.zipf = zipf.get(&word.word).copied();
            }
        }
    }
    record.count(
        "words_with_a_frequency",
        found.words.iter().filter(|w| w.zipf.is_some()).count() as u64,
    );
    record.count("words", found.words.len() as u64);
    record.count("words_repeated", found.repeated as u64);
    record.count(
        "words_without_context",
        found
            .words
            .iter()
            .filter(|word| word.contexts.is_empty())
            .count() as u64,
    );
    record.count(
        "contexts",
        found
            .words
            .iter()
            .map(|word| word.contexts.len() as u64)
            .sum(),
    );
    record.count("documents_searched", found.documents as u64);
    record.count("sentences_searched", found.sentences);

    write_json(&out, &found)?;
    out.table("contexts.parquet", &tables::context_table(&found)?)?;
    out.table("words.parquet", &tables::word_table(&found)?)?;
    Ok(record.finish(&out, &summary(&found))?)
}

/// The words to find contexts for.
fn words(config: &WordsConfig, record: &mut RunRecord) -> anyhow::Result<Vec<String>> {
    if let Some(list) = &config.list {
        return Ok(list.clone());
    }
    let Some(path) = &config.path else {
        bail!("no words: set `words.path` to a table or list of words, or `words.list`")
    };
    let options = ReadOptions::default()
        .with_column(config.column.clone())
        .with_text_unit(TextUnit::Line);
    let words = CorpusReader::open(&[path], options).and_then(|words| {
        words
            .documents()
            .map(|document| document.map(|d| d.text.trim().to_owned()))
            .collect::<Result<Vec<_>, _>>()
    });
    let words = words.with_context(|| format!("failed to read words from `{}`", path.display()))?;
    if words.iter().any(String::is_empty) {
        bail!("a word in `{}` is white space alone", path.display());
    }
    if path.is_file() {
        record.input(path)?;
    }
    Ok(words)
}

/// The column `zipf` of the table of words, as select-longtail writes it, by word; nothing where there is none.
fn zipf_values(config: &WordsConfig) -> anyhow::Result<HashMap<String, f64>> {
    let table = |path: &&PathBuf| {
        let format = Format::of(path).map(|(format, _)| format);
        path.is_file() && format.is_some_and(|format| format != Format::Text)
    };
    let Some(path) = config.path.as_ref().filter(table) else {
        return Ok(HashMap::new());
    };
    let table = TableReader::open(path)?;
    if !(table.has(&config.column) && table.has("zipf")) {
        return Ok(HashMap::new());
    }
    let columns = table.read(&[&config.column, "zipf"])?;
    let words = columns.text(&config.column)?.into_iter();
    Ok(words
        .zip(columns.opt_f64("zipf")?)
        .filter_map(|(word, zipf)| Some((word.trim().to_owned(), zipf?)))
        .collect())
}

/// The texts of the corpus that is to be kept out.
fn known_texts(corpus: &CorpusConfig, record: &mut RunRecord) -> anyhow::Result<KnownTexts> {
    let mut documents = corpus.open("exclude")?.documents();
    let known = KnownTexts::of(&mut documents).context("failed to read the corpus to exclude")?;
    record_reading("exclude", &Reading::of(&documents), record);
    Ok(known)
}

fn search(
    config: &PrepareConfig,
    words: &[String],
    known: Option<&KnownTexts>,
    record: &mut RunRecord,
) -> anyhow::Result<FoundContexts> {
    let split = config.split.to_split()?;
    let reader = config.corpus.open("corpus")?;
    // The corpus is read twice: to find the contexts, and to take down those that are kept.
    let progress = Progress::new("finding contexts", 2 * reader.total_bytes(), "bytes");
    let passes: std::sync::Mutex<Vec<Reading>> = std::sync::Mutex::default();
    let left_out = AtomicU64::new(0);
    let documents = || {
        let mut documents = reader.documents();
        let bytes = documents.bytes_read();
        let mut seen = 0;
        let (progress, passes, left_out) = (&progress, &passes, &left_out);
        std::iter::from_fn(move || {
            loop {
                let document = documents.next();
                let now = bytes.load(Ordering::Relaxed);
                progress.inc(now - seen);
                seen = now;
                match document {
                    Some(Ok(document)) => {
                        if split.is_some_and(|split| !split.holds_out(&document))
                            || known.is_some_and(|known| known.contains(&document))
                        {
                            left_out.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                        return Some(Ok(document));
                    }
                    Some(Err(err)) => return Some(Err(err)),
                    None => {
                        if let Ok(mut passes) = passes.lock() {
                            passes.push(Reading::of(&documents));
                        }
                        return None;
                    }
                }
            }
        })
    };
    let found = find_contexts(documents, words, &config.context_options())
        .context("failed to find contexts")?;
    record.timing("finding_contexts", progress.finish());
    let passes = passes.into_inner().unwrap_or_default();
    if let Some(reading) = passes.first() {
        record_reading("corpus", reading, record);
    }
    record.count("documents_left_out", left_out.into_inner() / 2);
    if found.documents == 0 {
        bail!("every document of the corpus is left out by `exclude` or `split`");
    }
    Ok(found)
}

fn record_reading(key: &str, reading: &Reading, record: &mut RunRecord) {
    let documents = reading.summary.documents as u64;
    record.count(&format!("{key}_documents_read"), documents);
    reading.record(key, &format!("{key}_"), record);
}

fn write_json(out: &OutputDir, found: &FoundContexts) -> anyhow::Result<()> {
    let mut file = out.file("contexts.json")?;
    serde_json::to_writer_pretty(&mut file, found)
        .map_err(std::io::Error::from)
        .and_then(|()| file.write_all(b"\n"))
        .context("failed to write `contexts.json`")?;
    Ok(file.commit()?)
}

/// What a person wants to know first.
fn summary(found: &FoundContexts) -> String {
    let without: Vec<&str> = found
        .words
        .iter()
        .filter(|word| word.contexts.is_empty())
        .map(|word| word.word.as_str())
        .collect();
    let contexts: usize = found.words.iter().map(|word| word.contexts.len()).sum();
    let mut text = format!(
        "Contexts: {contexts} of {} words, from {} sentences in {} documents\n",
        found.words.len() - without.len(),
        found.sentences,
        found.documents
    );
    if !without.is_empty() {
        let more = if without.len() > 8 { ", ..." } else { "" };
        text += &format!(
            "Words without a context: {} ({}{more})\n",
            without.len(),
            without[..without.len().min(8)].join(", ")
        );
    }
    if let Some((word, context)) = found
        .words
        .iter()
        .find_map(|word| Some((word, word.contexts.first()?)))
    {
        text += &format!("For example: {}[{}]\n", context.text, word.word);
    }
    text
}
