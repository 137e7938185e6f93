//! A run from configuration to files.

use anyhow::Context;
use job_kit::{Format, OutputDir, RunRecord, plot::Figure};
use longtail_corpus::{
    Band, BandReading, Frequencies, Lexicon, LongTailWords, RankCurve, long_tail_words,
};

use crate::{
    JOB, VERSION,
    config::SelectConfig,
    inputs::{Vocabulary, word_counts},
    plot, tables,
};

/// All files that a run may write.
fn outputs() -> impl Iterator<Item = String> {
    [
        "words.csv",
        "words.parquet",
        "tokens.parquet",
        "counts.parquet",
    ]
    .map(String::from)
    .into_iter()
    .chain(Figure::outputs(plot::STEM))
}

pub(crate) fn run(config: &SelectConfig, resolved: &serde_json::Value) -> anyhow::Result<()> {
    let out = OutputDir::create(&config.output.dir, JOB, resolved, outputs())?;
    let mut record = RunRecord::new(JOB, VERSION, resolved);
    record.seed = Some(config.split.seed);

    let vocabulary = Vocabulary::load(config, &mut record)?;
    let counts = vocabulary.counts(config, &out, &mut record)?;
    let frequencies = Frequencies::add_one(&counts);
    let band = config
        .band
        .spec(config.band_reading)
        .resolve(&frequencies, vocabulary.n_tokens)
        .context("failed to find the long-tail band (`band.lower`, `band.upper`)")?;
    let ranked = match config.band_reading {
        BandReading::Corrected => vocabulary.n_tokens,
        BandReading::Liu2025 => vocabulary.d_vocab,
    };
    let curve = RankCurve::new(frequencies.q()[..ranked].to_vec());
    for warning in &band.warnings {
        record.warn(warning.to_string());
    }
    record.note("band", serde_json::to_value(&band)?);
    record.count("tokens_in_band", band.tokens as u64);

    let lexicon = lexicon(config, &mut record)?;
    let corpus = word_counts(config, &mut record)?;
    let words = long_tail_words(
        &band,
        &frequencies,
        &vocabulary.tokenizer,
        &vocabulary.pieces,
        lexicon.as_ref(),
        corpus.as_ref(),
        config.word_options(),
    )?;
    let rare = words.words.iter().filter(|word| word.in_band).count();
    let common = words.words.len() - rare;
    record.count("words", rare as u64);
    record.count("words_of_the_band_not_taken", (words.rare - rare) as u64);
    record.count("words_above_the_band", common as u64);
    record.count("word_candidates", words.candidates as u64);
    record.note("left_out", serde_json::to_value(words.left_out)?);
    if let Some(asked) = config.words.rare.filter(|asked| asked.get() > rare) {
        record.warn(format!(
            "`words.rare` is {asked}, but only {rare} words are in the band"
        ));
    }
    if common < config.words.common {
        record.warn(format!(
            "`words.common` is {}, but only {common} words are above the band",
            config.words.common
        ));
    }
    if rare == 0 {
        record.warn("the band holds no word: widen it, or take another lexicon");
    }

    let provenance = [
        ("band".to_owned(), serde_json::to_string(&band)?),
        ("config".to_owned(), resolved.to_string()),
    ];
    let table = tables::word_table(&words.words, &provenance)?;
    for format in [Format::Csv, Format::Parquet] {
        out.table(&format!("words.{}", format.extension()), &table)?;
    }
    let tokens = tables::token_table(
        &band,
        &frequencies,
        &curve,
        &vocabulary.tokenizer,
        &provenance,
    )?;
    out.table("tokens.parquet", &tokens)?;
    if config.output.plot {
        plot::rank_frequency(&out, &curve, (&band, &config.band_in_words()), &mut record)?;
    }
    Ok(record.finish(&out, &summary(&band, &words))?)
}

fn lexicon(config: &SelectConfig, record: &mut RunRecord) -> anyhow::Result<Option<Lexicon>> {
    let paths = &config.lexicon.paths;
    if paths.is_empty() {
        return Ok(None);
    }
    let lexicon = Lexicon::open(paths)?;
    for path in paths {
        for file in [
            path.clone(),
            path.with_extension("aff"),
            path.with_extension("dic"),
        ] {
            if file.is_file() {
                record.input(file)?;
            }
        }
    }
    Ok(Some(lexicon))
}

/// What a person wants to know first.
fn summary(band: &Band, found: &LongTailWords) -> String {
    let mut text = format!(
        "Band: {} of {} tokens, frequency {:.3e} to {:.3e}, {:.1} % of all text\nZipf exponent: {:.3} (r = {:.4}, first {} ranks)\n",
        band.tokens,
        band.ranks,
        band.min_frequency,
        band.max_frequency,
        band.mass * 100.0,
        band.zipf.exponent,
        band.zipf.r,
        band.zipf.ranks
    );
    if let Some(elbow) = band.elbow {
        text += &format!(
            "Elbow: rank {}, slope {:.2} before and {:.2} after\n",
            elbow.rank, elbow.slope_before, elbow.slope_after
        );
    }
    let left_out = found.left_out;
    let (rare, common): (Vec<_>, Vec<_>) = found.words.iter().partition(|word| word.in_band);
    text += &format!("Words: {} of {} candidates\n", found.rare, found.candidates);
    if rare.len() < found.rare {
        text += &format!(
            "Taken of these, evenly over their ranks: {} (`words.rare`)\n",
            rare.len()
        );
    }
    for (count, why) in [
        (left_out.not_word_initial, "do not start a word"),
        (left_out.not_letters, "are not of letters"),
        (left_out.too_short, "are too short"),
        (left_out.upper_case, "have upper case"),
        (left_out.not_whole, "are cut by the tokenizer"),
        (left_out.not_in_lexicon, "are not in the lexicon"),
        (left_out.merged, "are merged with another spelling"),
        (
            left_out.with_other_spellings_outside_band,
            "are outside the band together with their other spellings",
        ),
    ] {
        if count > 0 {
            text += &format!("  {count:>6} {why}\n");
        }
    }
    let shown = |words: &mut dyn Iterator<Item = &&longtail_corpus::LongTailWord>| {
        words
            .take(8)
            .map(|w| w.word.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    if !rare.is_empty() {
        text += &format!("Rarest: {}\n", shown(&mut rare.iter()));
        text += &format!("Most frequent: {}\n", shown(&mut rare.iter().rev()));
    }
    if !common.is_empty() {
        text += &format!(
            "Words above the band, to compare with: {} ({})\n",
            common.len(),
            shown(&mut common.iter().rev())
        );
    }
    text
}
