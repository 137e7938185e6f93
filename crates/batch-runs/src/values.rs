//! The values of a key in a sweep: `a,b`, `choice(a,b)`, `range(0,10,2)`, `glob(pythia-*)`, `sort(...)`, `shuffle(...)`.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// More values than a sweep has.
const MOST: usize = 100_000;

/// The values that a text stands for, as they would be typed one by one; none where it is one value.
///
/// `choices` are those of the group that the key is, for `glob`.
///
/// # Errors
/// Why a text that calls a function is not understood.
pub(crate) fn values(text: &str, choices: &[String]) -> Result<Option<Vec<String>>, String> {
    let text = text.trim();
    if let Some((name, inner)) = call(text) {
        return function(name, inner, choices).map(Some);
    }
    let parts = split(text);
    Ok((parts.len() > 1).then_some(parts))
}

/// `name(inner)`, where the name is one of ours.
pub(crate) fn call(text: &str) -> Option<(&str, &str)> {
    const NAMES: [&str; 7] = [
        "choice", "range", "glob", "sort", "shuffle", "interval", "zip",
    ];
    let (name, rest) = text.split_once('(')?;
    let inner = rest.strip_suffix(')')?;
    // The parenthesis that is opened first is closed last.
    let mut depth = 1i32;
    let closes_early = rest.char_indices().any(|(at, c)| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth == 0 && at + 1 < rest.len()
    });
    (NAMES.contains(&name) && !closes_early).then_some((name, inner))
}

fn function(name: &str, inner: &str, choices: &[String]) -> Result<Vec<String>, String> {
    let (mut listed, mut named) = (vec![], vec![]);
    for part in split(inner) {
        match part.split_once('=') {
            Some((key, value)) if is_name(key.trim()) => {
                named.push((key.trim().to_owned(), value.trim().to_owned()));
            }
            _ => listed.push(part),
        }
    }
    let mut option = |key: &str| {
        let at = named.iter().position(|(name, _)| name == key)?;
        Some(named.remove(at).1)
    };
    let found = match name {
        "choice" => nested(listed, choices)?,
        "range" => {
            let listed = match &listed[..] {
                [stop] => vec!["0".to_owned(), stop.clone()],
                _ => listed,
            };
            let mut listed = listed.into_iter();
            let mut next = |key: &str| option(key).or_else(|| listed.next());
            let start = next("start").unwrap_or_else(|| "0".to_owned());
            let stop = next("stop").ok_or("`range` needs an end, as in `range(0, 10)`")?;
            let step = next("step").unwrap_or_else(|| "1".to_owned());
            if listed.next().is_some() {
                return Err("`range` takes a start, an end and a step".to_owned());
            }
            range(&start, &stop, &step)?
        }
        "glob" => {
            let matching = |patterns: &[String]| -> Result<Vec<glob::Pattern>, String> {
                let patterns = patterns.iter().map(|pattern| {
                    glob::Pattern::new(pattern)
                        .map_err(|err| format!("`{pattern}` is no pattern ({err})"))
                });
                patterns.collect()
            };
            let strip = |text: &str| text.trim_matches(['[', ']']).to_owned();
            let texts = |list: &[String]| -> Vec<String> {
                list.iter().flat_map(|text| split(&strip(text))).collect()
            };
            let wanted = matching(&texts(&listed))?;
            let excluded = matching(&texts(&option("exclude").into_iter().collect::<Vec<_>>()))?;
            let any =
                |patterns: &[glob::Pattern], name: &str| patterns.iter().any(|p| p.matches(name));
            let found: Vec<String> = choices
                .iter()
                .filter(|name| any(&wanted, name) && !any(&excluded, name))
                .cloned()
                .collect();
            if found.is_empty() {
                let known: Vec<String> = choices.iter().map(|name| format!("`{name}`")).collect();
                return Err(match known.is_empty() {
                    true => "`glob` finds choices of a group, and the key is none".to_owned(),
                    false => format!(
                        "no choice is like `{inner}`; there are {}",
                        known.join(", ")
                    ),
                });
            }
            found
        }
        "sort" => {
            let reverse = option("reverse").as_deref() == Some("true");
            let mut found = nested(listed, choices)?;
            let numbers: Option<Vec<f64>> = found.iter().map(|text| text.parse().ok()).collect();
            match numbers {
                Some(numbers) => {
                    let mut pairs: Vec<(f64, String)> = numbers.into_iter().zip(found).collect();
                    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
                    found = pairs.into_iter().map(|(_, text)| text).collect();
                }
                None => found.sort(),
            }
            if reverse {
                found.reverse();
            }
            found
        }
        "shuffle" => {
            let seed = option("seed").map_or(Ok(0), |seed| {
                let wrong = |_| format!("`seed={seed}` is no whole number");
                seed.parse().map_err(wrong)
            })?;
            let mut found = nested(listed, choices)?;
            found.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
            found
        }
        "interval" => {
            return Err(
                "`interval` is for an optimiser, and there is none; write `range(...)`".to_owned(),
            );
        }
        _ => {
            return Err(
                "`zip` names keys, as in `zip(seed=1,2, model=a,b)`, and stands alone".to_owned(),
            );
        }
    };
    match (named.first(), found.is_empty()) {
        (Some((key, _)), _) => Err(format!("`{name}` has no option `{key}`")),
        (None, true) => Err(format!("`{name}({inner})` has no values")),
        _ => Ok(found),
    }
}

/// Values that may be given by another function: `shuffle(range(1, 5))`.
fn nested(listed: Vec<String>, choices: &[String]) -> Result<Vec<String>, String> {
    let mut out = vec![];
    for part in listed {
        match call(&part) {
            Some((name, inner)) => out.extend(function(name, inner, choices)?),
            None => out.push(part),
        }
    }
    Ok(out)
}

/// Numbers from `start` on, without `stop`; with as many decimals as were written.
fn range(start: &str, stop: &str, step: &str) -> Result<Vec<String>, String> {
    let number = |text: &str| -> Result<f64, String> {
        let number = text.parse().ok().filter(|n: &f64| n.is_finite());
        number.ok_or_else(|| format!("`{text}` is no number"))
    };
    let (from, to, by) = (number(start)?, number(stop)?, number(step)?);
    if by == 0.0 {
        return Err("the step of `range` is 0".to_owned());
    }
    // A last step that is reached but for rounding is no value.
    let count = ((to - from) / by - 1e-9).ceil().max(0.0);
    if count > MOST as f64 {
        return Err(format!("`range` has more than {MOST} values"));
    }
    let decimals = |text: &str| match text.contains(['e', 'E']) {
        true => None,
        false => Some(text.split_once('.').map_or(0, |(_, after)| after.len())),
    };
    let decimals = [start, step]
        .map(decimals)
        .into_iter()
        .try_fold(0, |most, d| d.map(|d| most.max(d)));
    let written = |i: u32| {
        let value = from + f64::from(i) * by;
        match decimals {
            Some(decimals) => format!("{value:.decimals$}"),
            None => value.to_string(),
        }
    };
    Ok((0..count as u32).map(written).collect())
}

pub(crate) fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_alphanumeric() || ['_', '.', '/', '@', '-', '+'].contains(&c))
}

/// The parts between commas that stand in no bracket and no quotes; `\,` is a comma.
pub(crate) fn split(text: &str) -> Vec<String> {
    let (mut parts, mut part, mut depth, mut quote) = (vec![], String::new(), 0usize, None);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '\\') if chars.peek() == Some(&',') => {
                part.extend(chars.next());
                continue;
            }
            (None, ',') if depth == 0 => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => depth = depth.saturating_sub(1),
            // An apostrophe in a word opens nothing.
            (None, '"' | '\'') if !part.ends_with(char::is_alphanumeric) => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
        part.push(c);
    }
    parts.push(part);
    parts
        .into_iter()
        .map(|part| part.trim().to_owned())
        .collect()
}

/// The key that an override is of.
pub(crate) fn key(text: &str) -> String {
    let text = text.trim_start_matches(['+', '~']);
    text.split('=').next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<Vec<String>> {
        let choices = ["pythia-70m", "pythia-410m", "tiny"].map(str::to_owned);
        values(text, &choices).unwrap()
    }

    #[test]
    fn one_value_is_no_sweep() {
        for text in [
            "a",
            "[a,b]",
            "{a: 1, b: 2}",
            "'a,b'",
            "\"a,b\"",
            "a\\,b",
            "f(a,b)",
            "${oc.env:A,b}",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn values_are_taken_apart() {
        for (text, expected) in [
            ("a,b", "a|b"),
            ("it's,b", "it's|b"),
            (" a , b ", "a|b"),
            ("[1,2],[3]", "[1,2]|[3]"),
            ("'a,b',c", "'a,b'|c"),
            ("a\\,b,c", "a,b|c"),
            ("choice(a)", "a"),
            ("choice(range(3),9)", "0|1|2|9"),
            ("range(0,10,4)", "0|4|8"),
            ("range(1,3)", "1|2"),
            ("range(start=3,stop=0,step=-1)", "3|2|1"),
            ("range(0,0.3,0.1)", "0.0|0.1|0.2"),
            ("range(0,1e-2,5e-3)", "0|0.005"),
            ("glob(pythia-*)", "pythia-70m|pythia-410m"),
            ("glob([tiny, pythia-*], exclude=*70m)", "pythia-410m|tiny"),
            ("sort(10,9,1)", "1|9|10"),
            ("sort(b,a,reverse=true)", "b|a"),
            ("sort(glob(*))", "pythia-410m|pythia-70m|tiny"),
        ] {
            assert_eq!(of(text).unwrap().join("|"), expected, "{text}");
        }
    }

    #[test]
    fn a_shuffle_is_the_same_each_time() {
        let first = of("shuffle(range(0,20),seed=3)").unwrap();
        assert_eq!(of("shuffle(range(0,20),seed=3)").unwrap(), first);
        assert_ne!(of("shuffle(range(0,20),seed=4)").unwrap(), first);
        let mut sorted: Vec<u32> = first.iter().map(|text| text.parse().unwrap()).collect();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn wrong_calls_are_explained() {
        for (text, said) in [
            ("range(0,10,0)", "the step of `range` is 0"),
            ("range(a,3)", "`a` is no number"),
            ("range(3,1)", "has no values"),
            ("range(0,1e9)", "more than"),
            ("range(1,2,3,4)", "takes a start, an end and a step"),
            ("glob(x*)", "no choice is like `x*`"),
            ("sort(a,b,revers=true)", "`sort` has no option `revers`"),
            ("shuffle(a,b,seed=x)", "is no whole number"),
            ("interval(0,1)", "write `range(...)`"),
            ("zip(1,2)", "stands alone"),
        ] {
            let error = values(text, &["a".to_owned()]).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
