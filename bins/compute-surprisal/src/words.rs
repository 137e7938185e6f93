//! Words with their contexts, and what the model is asked about them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, bail};
use input_files::{Format, Pairs, TableReader, read_json, read_text};
use job_kit::RunRecord;
use neox_core::Text;
use neuron_ablate::{Join, WordRequest, WordStart};
use serde::{Deserialize, de::IgnoredAny};

use crate::config::{GroupBy, Reading, SurprisalConfig, WordsConfig};

/// A word in a context.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pair {
    pub(crate) word: String,
    /// Place among the contexts of the word, from 0.
    pub(crate) context_id: u32,
    /// `BOS_ONLY` where the word stands alone.
    pub(crate) context: String,
    /// What is put between context and word.
    pub(crate) separator: String,
    /// Frequency of the word on the Zipf scale, where it is known.
    pub(crate) zipf: Option<f64>,
    /// The document that the context is from.
    pub(crate) document: Option<DocumentOf>,
}

/// How a file of contexts says which document one is from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DocumentOf {
    /// Its row in the corpus, as prepare-context has it.
    Row(i64),
    /// A name.
    Name(String),
}

impl DocumentOf {
    fn read(document: serde_json::Value) -> Self {
        let text = match document {
            serde_json::Value::String(name) => name,
            other => other.to_string(),
        };
        // `007` is a name.
        match text.parse() {
            Ok(row) if row >= 0 && i64::to_string(&row) == text => Self::Row(row),
            _ => Self::Name(text),
        }
    }

    pub(crate) fn row(&self) -> Option<i64> {
        match self {
            Self::Row(row) => Some(*row),
            Self::Name(_) => None,
        }
    }

    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Self::Row(_) => None,
            Self::Name(name) => Some(name),
        }
    }
}

impl Pair {
    /// All text before the word.
    pub(crate) fn before(&self) -> String {
        format!("{}{}", self.context, self.separator)
    }
}

pub(crate) const BOS_ONLY: &str = "BOS_ONLY";

/// What the words of a run are.
#[derive(Debug)]
pub(crate) struct Words {
    pub(crate) pairs: Vec<Pair>,
    /// `[pair]`: index into `groups`.
    pub(crate) group: Vec<usize>,
    pub(crate) groups: Vec<String>,
    /// What the groups go by.
    pub(crate) by: GroupBy,
    /// `[pair]`: whether the word has a token of the band, where there is one.
    pub(crate) long_tail: Option<Vec<bool>>,
}

impl Words {
    /// The documents that the contexts are from, by their rows in the corpus; none where one of them does not say it.
    pub(crate) fn documents(&self) -> Option<BTreeSet<usize>> {
        let row = |pair: &Pair| usize::try_from(pair.document.as_ref()?.row()?).ok();
        self.pairs.iter().map(row).collect()
    }
}

/// A context as a file has it.
#[derive(Debug, Deserialize)]
struct FileContext {
    /// May be null, but not absent.
    #[serde(deserialize_with = "Option::deserialize")]
    context: Option<String>,
    /// What stood between context and word; none where the file does not say it.
    #[serde(default)]
    separator: Option<String>,
    #[serde(default)]
    zipf: Option<f64>,
    /// A number or a name.
    #[serde(default)]
    document: Option<serde_json::Value>,
}

/// The contexts of a word that are some, and its frequency where one of them says it.
#[derive(Debug, Default)]
struct FileWord {
    contexts: Vec<(String, FileContext)>,
    zipf: Option<f64>,
}

/// Reads the words, and counts what is left out.
pub(crate) fn read(config: &WordsConfig, record: &mut RunRecord) -> anyhow::Result<Vec<Pair>> {
    let path = &config.path;
    let by_word = contexts(path, record)
        .with_context(|| format!("failed to read words from `{}`", path.display()))?;
    record.input(path)?;
    record.count("words_in_file", by_word.len() as u64);
    let mut pairs = Vec::new();
    let (mut too_few, mut unused) = (Vec::new(), 0);
    let mut joined = 0u64;
    for (word, FileWord { contexts, zipf }) in by_word {
        if config.bos_only {
            pairs.push(Pair {
                word,
                context_id: 0,
                context: BOS_ONLY.into(),
                separator: String::new(),
                zipf,
                document: None,
            });
            continue;
        }
        if contexts.len() < config.min_context.max(1) {
            too_few.push(word);
            continue;
        }
        let used = config
            .max_context
            .unwrap_or(contexts.len())
            .min(contexts.len());
        unused += contexts.len() - used;
        for (context_id, (context, file)) in (0u32..).zip(contexts.into_iter().take(used)) {
            joined += u64::from(file.separator.is_none());
            let join = config.join.unwrap_or_default();
            pairs.push(Pair {
                separator: file
                    .separator
                    .unwrap_or_else(|| join.separator(&context, &word).into()),
                word: word.clone(),
                context_id,
                context,
                zipf,
                document: file.document.map(DocumentOf::read),
            });
        }
    }
    record.count("contexts_without_a_separator", joined);
    if joined == 0 && config.join.is_some() && !config.bos_only {
        record.warn(format!(
            "`words.join` is not used: every context of `{}` says what stands between it and its word (`separator`)",
            path.display()
        ));
    }
    record.count("words_left_out_for_too_few_contexts", too_few.len() as u64);
    record.count("contexts_left_out_beyond_max_context", unused as u64);
    record.count("pairs", pairs.len() as u64);
    if !too_few.is_empty() {
        tracing::info!(
            "{} words have fewer than {} contexts and are left out",
            too_few.len(),
            config.min_context.max(1)
        );
        record.note("words_left_out", too_few);
    }
    if pairs.is_empty() {
        bail!(
            "no word of `{}` has {} contexts or more",
            path.display(),
            config.min_context.max(1)
        );
    }
    Ok(pairs)
}

type ByWord = BTreeMap<String, FileWord>;

/// Contexts by word, words in alphabetical order, contexts in that of the file.
///
/// White space around a word is no part of it; that around a context is. An empty context is none.
fn contexts(path: &Path, record: &mut RunRecord) -> anyhow::Result<ByWord> {
    let (mut repeated, mut without) = (0u64, 0u64);
    let mut by_word = ByWord::new();
    let mut add = |word: &str, context: Option<FileContext>| {
        let word = word.trim();
        if word.is_empty() {
            bail!("a word is empty");
        }
        let entry = by_word.entry(word.to_owned()).or_default();
        let mut context = context;
        if let Some(zipf) = context.as_ref().and_then(|context| context.zipf) {
            let known = *entry.zipf.get_or_insert(zipf);
            if !zipf.is_finite() || known != zipf {
                bail!(
                    "word `{word}` has the Zipf values {known} and {zipf}, expected one, and a finite one"
                );
            }
        }
        let text = context.as_mut().and_then(|context| context.context.take());
        match text.filter(|text| !text.is_empty()).zip(context) {
            Some(context) => entry.contexts.push(context),
            None => without += 1,
        }
        Ok(())
    };
    match words_by_key(path)? {
        Some(Pairs(words)) => {
            let mut seen = BTreeSet::new();
            for (word, contexts) in words {
                repeated += u64::from(!seen.insert(word.trim().to_owned()));
                if contexts.is_empty() {
                    add(&word, None)?;
                }
                for context in contexts {
                    add(&word, Some(context))?;
                }
            }
        }
        None => {
            let table = TableReader::open(path)?;
            let has_separator = table.has("separator");
            let mut names = vec!["word"];
            if table.has("context") {
                let more = ["context", "separator", "zipf", "document"];
                names.extend(more.into_iter().filter(|name| table.has(name)));
            } else if table.has("zipf") {
                names.push("zipf");
            }
            for columns in table.batches(&names)? {
                let columns = columns?;
                let text = |name: &str| match names.contains(&name) {
                    true => columns.opt_text(name),
                    false => Ok(vec![None; columns.rows()]),
                };
                let zipf = match names.contains(&"zipf") {
                    true => columns.opt_f64("zipf")?,
                    false => vec![None; columns.rows()],
                };
                let rows = columns.text("word")?.into_iter().zip(text("context")?);
                let rows = rows.zip(text("separator")?).zip(text("document")?);
                for ((((word, context), separator), document), zipf) in rows.zip(zipf) {
                    let context = FileContext {
                        context,
                        // Where there is the column, an empty cell is nothing between context and word.
                        separator: separator.or(has_separator.then(String::new)),
                        zipf,
                        document: document.map(Into::into),
                    };
                    add(&word, Some(context))?;
                }
            }
        }
    }
    record.count("rows_without_a_context", without);
    if repeated > 0 {
        record.count("words_listed_again", repeated);
        record.warn(format!(
            "{repeated} words are listed more than once in `{}`: their contexts are put together",
            path.display()
        ));
    }
    Ok(by_word)
}

/// The words of a JSON object from word to contexts; none where the file is a table, JSON Lines included.
fn words_by_key(path: &Path) -> anyhow::Result<Option<Pairs<Vec<FileContext>>>> {
    if !matches!(Format::of(path), Some((Format::Json, _))) {
        return Ok(None);
    }
    let text = read_text(path, &[Format::Json])?;
    let values = serde_json::Deserializer::from_str(&text).into_iter::<IgnoredAny>();
    if text.trim_start().starts_with('[') || values.take(2).filter(Result::is_ok).count() == 2 {
        return Ok(None);
    }
    let words = read_json(path).context(
        "expected an object that gives each word a list of objects with a `context`, or JSON Lines with a `word` and a `context`",
    )?;
    Ok(Some(words))
}

/// The pairs of words that have no more pieces than `words.max_pieces` in any of their contexts, with what is asked for them; counts the others.
pub(crate) fn within_pieces(
    pairs: Vec<Pair>,
    requests: Vec<WordRequest>,
    config: &WordsConfig,
    record: &mut RunRecord,
) -> anyhow::Result<(Vec<Pair>, Vec<WordRequest>)> {
    let Some(most) = config.max_pieces else {
        return Ok((pairs, requests));
    };
    let longer = pairs
        .iter()
        .zip(&requests)
        .filter(|(_, request)| request.word.len() > most)
        .map(|(pair, _)| pair.word.clone());
    let longer: BTreeSet<String> = longer.collect();
    record.count("words_left_out_for_too_many_pieces", longer.len() as u64);
    let kept: (Vec<Pair>, Vec<WordRequest>) = pairs
        .into_iter()
        .zip(requests)
        .filter(|(pair, _)| !longer.contains(&pair.word))
        .unzip();
    record.count("pairs", kept.0.len() as u64);
    if kept.0.is_empty() {
        bail!("every word has more than {most} pieces (`words.max_pieces`)");
    }
    if !longer.is_empty() {
        tracing::info!(
            "{} words have more than {most} pieces and are left out",
            longer.len()
        );
        record.note(
            "words_of_too_many_pieces",
            longer.into_iter().collect::<Vec<_>>(),
        );
    }
    Ok(kept)
}

/// What the model is asked for each pair.
pub(crate) fn requests(
    pairs: &[Pair],
    config: &SurprisalConfig,
    text: &Text,
    bos: i64,
    max: usize,
    record: &mut RunRecord,
) -> anyhow::Result<Vec<WordRequest>> {
    let (mut cut, mut merged, mut inside) = (0u64, 0u64, 0u64);
    let mut requests = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let alone = config.words.bos_only;
        let context = if alone { "" } else { &pair.context };
        let (request, has_bos) = match config.reading {
            Reading::Corrected => {
                let has_bos = config.words.bos || config.words.bos_only;
                let before = has_bos.then_some(bos);
                let context = if alone { String::new() } else { pair.before() };
                (
                    WordRequest::joint(text, before, &context, &pair.word, Join::AsIs),
                    has_bos,
                )
            }
            Reading::Liu2025 => {
                let has_bos = config.words.bos_only;
                (
                    WordRequest::liu2025(text, bos, context, &pair.word, has_bos),
                    has_bos,
                )
            }
        };
        let request = request
            .with_context(|| format!("context {} of word `{}`", pair.context_id, pair.word))?;
        let fits = request.within(max, has_bos).with_context(|| {
            format!(
                "word `{}` has {} pieces, too many for a model that reads {max} tokens",
                pair.word,
                request.word.len()
            )
        })?;
        cut += u64::from(fits.word.end != request.word.end);
        if config.reading == Reading::Corrected {
            merged += u64::from(fits.start == WordStart::Merged);
            inside += u64::from(fits.start == WordStart::Inside);
        }
        requests.push(fits);
    }
    record.count("contexts_cut_to_what_the_model_reads", cut);
    record.count("words_that_share_a_piece_with_their_context", merged);
    record.count("words_that_follow_no_space", inside);
    Ok(requests)
}
