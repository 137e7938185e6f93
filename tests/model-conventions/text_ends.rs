//! Which tokens begin and end a text, from the files beside a tokenizer.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use std::path::Path;

use model_conventions::TextEnds;
use serde_json::{Value, json};

fn ends(files: &[(&str, Value)]) -> TextEnds {
    let folder = tempfile::tempdir().unwrap();
    for (name, json) in files {
        std::fs::write(folder.path().join(name), json.to_string()).unwrap();
    }
    TextEnds::of(&folder.path().join("tokenizer.json")).unwrap()
}

fn named(bos: Option<&str>, eos: Option<&str>) -> TextEnds {
    TextEnds {
        bos: bos.map(String::from),
        eos: eos.map(String::from),
    }
}

fn two_specials() -> Value {
    json!([{"id": 0, "content": "<s>", "special": true}, {"id": 1, "content": "</s>", "special": true}])
}

#[test]
fn the_config_of_the_tokenizer_comes_first() {
    let template = json!({"type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]});
    let tokenizer = json!({"added_tokens": two_specials(), "post_processor": template});
    let config = json!({"bos_token": {"content": "<b>", "special": true}, "eos_token": null});
    let map = json!({"bos_token": "<other>", "eos_token": "<e>"});
    assert_eq!(
        ends(&[
            ("tokenizer.json", tokenizer.clone()),
            ("tokenizer_config.json", config),
            ("special_tokens_map.json", map)
        ]),
        named(Some("<b>"), Some("<e>"))
    );
    assert_eq!(
        ends(&[("tokenizer.json", tokenizer)]),
        named(Some("<s>"), None)
    );
}

#[test]
fn post_processors_and_a_single_special_token_say_it_too() {
    let roberta = json!({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]});
    let sequence = json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, roberta]});
    let tokenizer = json!({"added_tokens": two_specials(), "post_processor": sequence});
    assert_eq!(
        ends(&[("tokenizer.json", tokenizer)]),
        named(Some("<s>"), Some("</s>"))
    );
    let gpt2 = json!({"added_tokens": [{"id": 9, "content": "<|endoftext|>", "special": true}], "post_processor": null});
    assert_eq!(
        ends(&[("tokenizer.json", gpt2)]),
        named(Some("<|endoftext|>"), Some("<|endoftext|>"))
    );
}

#[test]
fn two_special_tokens_say_nothing_and_a_broken_file_is_an_error() {
    let tokenizer = json!({"added_tokens": two_specials(), "post_processor": null});
    assert_eq!(ends(&[("tokenizer.json", tokenizer)]), TextEnds::default());
    assert!(
        TextEnds::of(Path::new("nowhere/tokenizer.json"))
            .unwrap_err()
            .to_string()
            .contains("nowhere")
    );
}
