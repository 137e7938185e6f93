//! Where in a YAML file a key stands, for messages.

use saphyr_parser::{Event, Parser};

/// What encloses the event that is read.
enum Around {
    /// A mapping, and the key whose value comes next.
    Mapping(Option<String>),
    /// A sequence, and the place of the entry that comes next.
    Sequence(usize),
}

/// The line of a key, from 1; entries of lists are named by their place. `None` if the text has no such key, or is not YAML up to it.
///
/// What stands around may be of the file that includes this one: the longest end of `path` that is there counts, from the top of the text.
pub(super) fn line_of(text: &str, path: &[String]) -> Option<usize> {
    (0..path.len()).find_map(|first| line_at(text, &path[first..]))
}

fn line_at(text: &str, path: &[String]) -> Option<usize> {
    let mut around: Vec<Around> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.ok()?;
        let line = span.start.line();
        // A key, where the mapping around awaits one.
        if let (Event::Scalar(key, ..), Some(Around::Mapping(open @ None))) =
            (&event, around.last_mut())
        {
            *open = Some(key.to_string());
            if stands_at(&around, path) {
                return Some(line);
            }
            continue;
        }
        match event {
            Event::MappingStart(..) | Event::SequenceStart(..) => {
                if matches!(around.last(), Some(Around::Sequence(_))) && stands_at(&around, path) {
                    return Some(line);
                }
                around.push(match event {
                    Event::MappingStart(..) => Around::Mapping(None),
                    _ => Around::Sequence(0),
                });
            }
            Event::MappingEnd | Event::SequenceEnd => {
                around.pop();
                value_ends(&mut around);
            }
            Event::Scalar(..) | Event::Alias(..) => {
                if matches!(around.last(), Some(Around::Sequence(_))) && stands_at(&around, path) {
                    return Some(line);
                }
                value_ends(&mut around);
            }
            _ => {}
        }
    }
    None
}

fn value_ends(around: &mut [Around]) {
    match around.last_mut() {
        Some(Around::Mapping(key)) => *key = None,
        Some(Around::Sequence(place)) => *place += 1,
        None => {}
    }
}

fn stands_at(around: &[Around], path: &[String]) -> bool {
    let is = |(around, wanted): (&Around, &String)| match around {
        Around::Mapping(key) => key.as_ref() == Some(wanted),
        Around::Sequence(place) => place.to_string() == *wanted,
    };
    around.len() == path.len() && around.iter().zip(path).all(is)
}

#[cfg(test)]
mod tests {
    use super::line_of;

    const TEXT: &str = "# a comment
defaults:
  - model: tiny
seed: 42
corpus: {path: a.txt,
  rows: [1, 2]}
\"words\":
  list:
    - a: 1
    - b
  ? min_length
  : 3
";

    #[test]
    fn keys_have_lines() {
        for (path, line) in [
            ("seed", Some(4)),
            ("corpus", Some(5)),
            ("corpus.path", Some(5)),
            ("corpus.rows", Some(6)),
            ("words.list", Some(8)),
            ("words.list.0", Some(9)),
            ("words.list.0.a", Some(9)),
            ("words.list.1", Some(10)),
            ("words.min_length", Some(11)),
            // The file of a group, under the group's key.
            ("job.seed", Some(4)),
            ("words.nothing", None),
            ("a", None),
            ("list", None),
        ] {
            let path: Vec<String> = path.split('.').map(str::to_owned).collect();
            assert_eq!(line_of(TEXT, &path), line, "{path:?}");
        }
        assert_eq!(line_of("a: [1\nb: 2", &["b".to_owned()]), None);
    }
}
