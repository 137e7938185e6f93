//! Sound inputs, small enough that a run gets through many.

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    sync::Arc,
};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, UInt32Array};

use crate::{
    inputs::{NEURON_NAMES, TOKEN_NAMES, WORD_NAMES},
    texts::{CORPUS_NAMES, COUNT_NAMES},
};

/// A file of the repository.
fn data(path: &str) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::read(root.join(path)).expect("a file of the repository")
}

/// The first lines of a text file of the repository.
fn lines(path: &str, n: usize) -> Vec<u8> {
    let bytes = data(path);
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').take(n);
    lines.flatten().copied().collect()
}

/// `bytes` under the name `name`, as [`crate::named`] takes them apart.
fn under(names: &[&str], name: &str, bytes: &[u8]) -> Vec<u8> {
    let choice = names.iter().position(|known| *known == name);
    let choice = choice.and_then(|at| u8::try_from(at).ok());
    [&[choice.expect("one of the names")], bytes].concat()
}

fn parquet(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
    let mut writer = parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), None)
        .expect("a writer to memory");
    writer.write(&batch).expect("a batch of its schema");
    writer.into_inner().expect("nothing to fail at")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).expect("memory");
    gzip.finish().expect("memory")
}

fn npy(descr: &str, fortran_order: &str, shape: &str, values: &[u8]) -> Vec<u8> {
    let header =
        format!("{{'descr': '{descr}', 'fortran_order': {fortran_order}, 'shape': {shape}, }}");
    let header = format!("{header:<117}\n");
    let length = u16::try_from(header.len()).expect("a short header");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values);
    bytes
}

pub(crate) fn pickle() -> Vec<Vec<u8>> {
    let file = std::io::Cursor::new(data("examples/data/tiny-neox/step1000/pytorch_model.bin"));
    let mut archive = zip::ZipArchive::new(file).expect("an archive of torch.save");
    let mut bytes = Vec::new();
    let mut entry = archive
        .by_name("pytorch_model/data.pkl")
        .expect("its pickle");
    entry.read_to_end(&mut bytes).expect("its pickle");
    vec![bytes]
}

pub(crate) fn safetensors() -> Vec<Vec<u8>> {
    let header = br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"I64","shape":[1],"data_offsets":[12,20]}}"#;
    let mut small = (header.len() as u64).to_le_bytes().to_vec();
    small.extend(header);
    small.extend([0; 20]);
    vec![small]
}

pub(crate) fn config() -> Vec<Vec<u8>> {
    ["step2000", "step4000"]
        .map(|step| data(&format!("examples/data/tiny-neox/{step}/config.json")))
        .to_vec()
}

pub(crate) fn index() -> Vec<Vec<u8>> {
    vec![br#"{"metadata": {"total_size": 8}, "weight_map": {"a.weight": "model-1.safetensors", "b": "model-2.safetensors"}}"#.to_vec()]
}

pub(crate) fn corpus() -> Vec<Vec<u8>> {
    let json = lines("examples/data/corpus/held-out.jsonl", 2);
    let odd = b"{\"id\": 1, \"text\": \"na\\u00efve \\ud83d\\udc0b\"}\r\n\n{\"text\": null}\n";
    let csv = "id,text\n1,\"a \"\"b\"\"\nc\"\n2,d\n";
    let texts = StringArray::from(vec![Some("call"), None, Some("me"), Some("Ishmael")]);
    let table = parquet(vec![("text", Arc::new(texts))]);
    let zstd = zstd::encode_all(csv.as_bytes(), 1).expect("memory");
    let seeds: &[(&str, &[u8])] = &[
        ("a.jsonl", &json),
        ("a.jsonl", odd),
        ("a.csv", csv.as_bytes()),
        ("a.tsv", &csv.replace(',', "\t").into_bytes()),
        ("a.txt", "one\ntwo\n\nthree é\n".as_bytes()),
        ("a.parquet", &table),
        ("a.jsonl.gz", &gzip(odd)),
        ("a.csv.zst", &zstd),
        ("a.txt.gz", &gzip("one\ntwo\n".as_bytes())),
    ];
    let seeds = seeds.iter();
    seeds
        .map(|(name, bytes)| under(&CORPUS_NAMES, name, bytes))
        .collect()
}

pub(crate) fn counts() -> Vec<Vec<u8>> {
    let values: Vec<u8> = (0..8i64).flat_map(i64::to_le_bytes).collect();
    let ids = Arc::new(UInt32Array::from_iter_values(0..50));
    let counts = Arc::new(Int64Array::from_iter_values(0..50));
    let table = parquet(vec![("token_id", ids), ("count", counts)]);
    let seeds: &[(&str, &[u8])] = &[
        ("a.npy", &npy("<i8", "False", "(8,)", &values)),
        ("a.npy", &npy(">u4", "False", "(16,)", &values)),
        ("a.json", br#"{"0": 5, "12": 7}"#),
        ("a.json", b"[1, 2, 3, 4]"),
        ("a.parquet", &table),
    ];
    let seeds = seeds.iter();
    seeds
        .map(|(name, bytes)| under(&COUNT_NAMES, name, bytes))
        .collect()
}

pub(crate) fn contexts() -> Vec<Vec<u8>> {
    let text = "Call me Ishmael. Some years ago - never mind how long - a whale, \u{201c}the whale\u{201d} (Mr. Whale's). Some naïve whales!\n\nwhale";
    ["whale", "Ishmael", "naïve", "years"]
        .map(|word| format!("{word}\0{text}").into_bytes())
        .to_vec()
}

pub(crate) fn lexicon() -> Vec<Vec<u8>> {
    let small = "SET UTF-8\nSFX S Y 2\nSFX S y ies [^aeiou]y\nSFX S 0 s [^sxy]\nPFX A Y 1\nPFX A 0 re .\nREP 1\nREP a ei\nCOMPOUNDMIN 2\nCOMPOUNDFLAG C\n";
    let dictionary = "3\nwhale/SAC\nfly/S\nship/C\n";
    let real = [
        &b"abilities\0"[..],
        &data("examples/data/hunspell/en_US.aff"),
        b"\0",
        &lines("examples/data/hunspell/en_US.dic", 40),
    ]
    .concat();
    vec![
        format!("rewhales\0{small}\0{dictionary}").into_bytes(),
        format!("whaleship\0{small}\0{dictionary}").into_bytes(),
        real,
    ]
}

pub(crate) fn words() -> Vec<Vec<u8>> {
    let csv = "word,context\nwhale,\"There she \"\"blows\"\", the \"\nwhale,\nship,A \n";
    let words = Arc::new(StringArray::from(vec!["whale", "ship"]));
    let contexts = Arc::new(StringArray::from(vec![Some("There she blows, the "), None]));
    let columns: Vec<(&str, ArrayRef)> = vec![("word", words), ("context", contexts)];
    let seeds: &[(&str, &[u8])] = &[
        ("a.csv", csv.as_bytes()),
        ("a.tsv", &csv.replace(',', "\t").into_bytes()),
        ("a.csv", "\u{feff}word \r\nwhale\r\n".as_bytes()),
        ("a.parquet", &parquet(columns.clone())),
        ("a.feather", &feather(columns)),
        ("a.jsonl", b"{\"word\": \"whale\", \"context\": \"the \"}\n{\"word\": \"ship\", \"context\": null}\n"),
        ("a.csv.gz", &gzip(csv.as_bytes())),
    ];
    let seeds = seeds.iter();
    seeds
        .map(|(name, bytes)| under(&WORD_NAMES, name, bytes))
        .collect()
}

pub(crate) fn tokens() -> Vec<Vec<u8>> {
    let values: Vec<u8> = (0..12i32).flat_map(i32::to_le_bytes).collect();
    let seeds: &[(&str, &[u8])] = &[
        ("a.npy", &npy("<i4", "False", "(3, 4)", &values)),
        ("a.npy", &npy("<i4", "True", "(3, 4)", &values)),
        ("a.npy", &npy("<u2", "False", "(4, 6)", &values)),
        ("a.json", b"[[0, 5, 7], [1, 2]]"),
        (
            "a.json",
            br#"{"model": "step4000", "tokens": [[0, 42, 2958], [326, 659]]}"#,
        ),
    ];
    let seeds = seeds.iter();
    seeds
        .map(|(name, bytes)| under(&TOKEN_NAMES, name, bytes))
        .collect()
}

pub(crate) fn neurons() -> Vec<Vec<u8>> {
    let seeds: &[(&str, &[u8])] = &[
        (
            "a.csv",
            b"step,top_neurons,med_effect\n1000,\"[\"\"3.193\"\", \"\"3.105\"\"]\",0.5\n4000,\"['3.19']\",0.25\n",
        ),
        ("a.yaml", b"- step: 1000\n  neurons: [\"3.10\", '3.8']\n- {step: 4000, neurons: []}\n"),
        ("a.json", br#"[{"step": 4000, "neurons": ["3.193", "3.8"]}]"#),
    ];
    let seeds = seeds.iter();
    seeds
        .map(|(name, bytes)| under(&NEURON_NAMES, name, bytes))
        .collect()
}

pub(crate) fn yaml() -> Vec<Vec<u8>> {
    let plain =
        "seed: 1\nshare: 0.5\nname: null\ndir: null\nlist: []\npart: {on: false, any: null}\n";
    let anchors = "seed: &s 7\nshare: 2\nname: null\ndir: \"*.jsonl\"\nlist: [*s, 1]\npart: {on: true, any: [*s]}\n";
    [
        ("", plain),
        ("seed=7\ndir=~/x #2\npart.any={a: 1}\n~name", plain),
        (
            "list=[1, 2]\nname=@a%b&c!d\npart.on=true\nshare=1e300",
            plain,
        ),
        ("", anchors),
    ]
    .map(|(overrides, file)| format!("{overrides}\0{file}").into_bytes())
    .to_vec()
}

fn feather(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
    let mut writer = arrow::ipc::writer::FileWriter::try_new(Vec::new(), &batch.schema())
        .expect("a writer to memory");
    writer.write(&batch).expect("a batch of its schema");
    writer.into_inner().expect("nothing to fail at")
}
