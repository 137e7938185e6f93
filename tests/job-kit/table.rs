//! Tables written and read back, by us and by pandas.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use std::{fs, path::Path, sync::Arc};

use arrow::{
    array::{
        BooleanArray, DictionaryArray, Float32Array, Float64Array, Int32Array, LargeStringArray,
        RecordBatch, StringArray, UInt64Array,
    },
    datatypes::Int8Type,
};
use job_kit::{Format, Table, TableReader, TableWriter, exit::message};
use tempfile::TempDir;

fn batch(first: i32) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable([
        (
            "neuron",
            Arc::new(Int32Array::from_iter_values(first..first + 3)) as _,
            false,
        ),
        (
            "component_name",
            Arc::new(StringArray::from_iter_values(
                (first..first + 3).map(|n| format!("5.{n}")),
            )) as _,
            false,
        ),
        (
            "loss",
            Arc::new(Float32Array::from(vec![0.5, -1.0, f32::NAN])) as _,
            false,
        ),
        (
            "share",
            Arc::new(Float64Array::from(vec![Some(0.25), None, Some(1.0)])) as _,
            true,
        ),
        (
            "in_band",
            Arc::new(BooleanArray::from(vec![true, false, true])) as _,
            false,
        ),
    ])
    .unwrap()
}

fn write(path: &Path, format: Format, batches: &[RecordBatch]) {
    let mut writer = TableWriter::create(path, batches[0].schema(), format).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    assert_eq!(
        writer.finish().unwrap(),
        batches.iter().map(|b| b.num_rows() as u64).sum::<u64>()
    );
}

#[test]
fn columns_have_the_type_of_what_they_say() {
    let rows: [(i32, f32, Option<f64>, bool); 3] = [
        (7, 0.5, Some(0.25), true),
        (8, -1.0, None, false),
        (9, f32::NAN, Some(1.0), true),
    ];
    let table = Table::of(&rows)
        .column("neuron", |row| row.0)
        .column("component_name", |row| format!("5.{}", row.0))
        .values("loss", rows.map(|row| row.1))
        .column("share", |row| row.2)
        .column("in_band", |row| row.3);
    let (found, expected) = (table.batch().unwrap(), batch(7));
    assert_eq!(found.schema(), expected.schema());
    // NaN is not itself.
    let shown = |batch| format!("{batch:?}");
    assert_eq!(shown(found), shown(expected));

    let uneven = Table::of(&rows)
        .column("neuron", |row| row.0)
        .values("loss", [0.5]);
    assert!(message(&uneven.batch().unwrap_err().into()).contains("length"));
}

#[test]
fn both_formats_read_back() {
    let dir = TempDir::new().unwrap();
    for format in [Format::Parquet, Format::Feather] {
        let path = dir.path().join("table").with_extension(format.extension());
        write(&path, format, &[batch(0), batch(3)]);
        let table = TableReader::open(&path).unwrap();
        assert_eq!(table.rows().unwrap(), 6);
        assert!(table.has("loss") && !table.has("entropy"));
        let columns = table
            .read(&["share", "neuron", "loss", "in_band", "component_name"])
            .unwrap();
        assert_eq!(columns.i64("neuron").unwrap(), [0, 1, 2, 3, 4, 5]);
        assert_eq!(
            columns.opt_f64("share").unwrap()[..3],
            [Some(0.25), None, Some(1.0)]
        );
        assert_eq!(columns.bool("in_band").unwrap()[..3], [true, false, true]);
        assert_eq!(columns.text("component_name").unwrap()[4], "5.4");
        let loss = columns.f64("loss").unwrap();
        assert!(loss[0] == 0.5 && loss[1] == -1.0 && loss[2].is_nan());
        // Batch by batch, only what is asked for.
        let rows: Vec<usize> = table
            .batches(&["loss"])
            .unwrap()
            .map(|b| b.unwrap().rows())
            .collect();
        assert_eq!(rows.iter().sum::<usize>(), 6);
    }
}

#[test]
fn a_table_without_rows() {
    let dir = TempDir::new().unwrap();
    for format in [Format::Parquet, Format::Feather] {
        let path = dir.path().join("empty").with_extension(format.extension());
        write(&path, format, &[batch(0).slice(0, 0)]);
        let table = TableReader::open(&path).unwrap();
        assert_eq!(table.rows().unwrap(), 0);
        assert_eq!(
            table.read(&["neuron"]).unwrap().i64("neuron").unwrap(),
            Vec::<i64>::new()
        );
    }
}

#[test]
fn csv_has_a_header_even_without_rows() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("table.csv");
    write(&path, Format::Csv, &[batch(0).slice(0, 0)]);
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "neuron,component_name,loss,share,in_band\n"
    );
    write(&path, Format::Csv, &[batch(0).slice(0, 2)]);
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "neuron,component_name,loss,share,in_band\n0,5.0,0.5,0.25,true\n1,5.1,-1.0,,false\n"
    );
}

#[test]
fn types_are_converted_only_where_nothing_is_lost() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("types.feather");
    let dictionary: DictionaryArray<Int8Type> = vec!["a", "b", "a"].into_iter().collect();
    let batch = RecordBatch::try_from_iter_with_nullable([
        (
            "whole_floats",
            Arc::new(Float64Array::from(vec![Some(1.0), Some(-2.0), None])) as _,
            true,
        ),
        (
            "fractions",
            Arc::new(Float64Array::from(vec![1.0, 2.5, 3.0])) as _,
            false,
        ),
        (
            "large",
            Arc::new(LargeStringArray::from(vec!["x", "y", "z"])) as _,
            false,
        ),
        ("category", Arc::new(dictionary) as _, false),
        (
            "huge",
            Arc::new(UInt64Array::from(vec![1, 2, u64::MAX])) as _,
            false,
        ),
    ])
    .unwrap();
    write(&path, Format::Feather, &[batch]);
    let columns = TableReader::open(&path)
        .unwrap()
        .read(&["whole_floats", "fractions", "large", "category", "huge"])
        .unwrap();
    assert_eq!(
        columns.opt_i64("whole_floats").unwrap(),
        [Some(1), Some(-2), None]
    );
    assert_eq!(columns.text("large").unwrap(), ["x", "y", "z"]);
    assert_eq!(columns.text("category").unwrap(), ["a", "b", "a"]);
    for (result, part) in [
        (
            columns.i64("fractions").map(drop),
            "column `fractions` of `types.feather` holds 2.5, expected whole numbers",
        ),
        (
            columns.i64("huge").map(drop),
            "column `huge` of `types.feather` holds",
        ),
        (
            columns.f64("large").map(drop),
            "column `large` of `types.feather` holds LargeUtf8, expected numbers",
        ),
        (
            columns.text("fractions").map(drop),
            "column `fractions` of `types.feather` holds Float64, expected text",
        ),
        (columns.bool("category").map(drop), "expected truth values"),
        (
            columns.f64("whole_floats").map(drop),
            "column `whole_floats` of `types.feather` is null in row 2",
        ),
    ] {
        let error = result
            .unwrap_err()
            .to_string()
            .replace(&path.display().to_string(), "types.feather");
        assert!(error.contains(part), "{error}");
    }
}

/// The golden table that pandas wrote: 256 neurons, 370 positions, read batch by batch.
#[test]
fn golden_parquet_of_pandas() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/tiny-neox/ablation-longtail.parquet"
    );
    let table = TableReader::open(path).unwrap();
    assert_eq!(table.rows().unwrap(), 256 * 370);
    let mut neurons = vec![];
    for columns in table.batches(&["neuron"]).unwrap() {
        neurons.extend(columns.unwrap().i64("neuron").unwrap());
    }
    assert_eq!(
        (neurons.len(), neurons.iter().min(), neurons.iter().max()),
        (256 * 370, Some(&0), Some(&255))
    );
}

/// Made by `tests/job-kit/make_feather.py`: pandas, LZ4, with a category, an index and integers that had gaps.
#[test]
fn feather_of_pandas() {
    for name in [
        "pandas-lz4.feather",
        "pandas-zstd.feather",
        "pandas-uncompressed.feather",
    ] {
        let table = TableReader::open(
            Path::new(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../tests/job-kit/data"
            ))
            .join(name),
        )
        .unwrap();
        let columns = table
            .read(&["component_name", "token", "rank", "loss", "set"])
            .unwrap();
        assert_eq!(
            columns.text("component_name").unwrap(),
            ["3.1", "3.10", "3.1"],
            "{name}"
        );
        assert_eq!(
            columns.opt_text("token").unwrap(),
            [Some(" the".to_owned()), None, Some("é".to_owned())]
        );
        assert_eq!(columns.text("set").unwrap(), ["rare", "common", "rare"]);
        assert_eq!(columns.f64("loss").unwrap()[0], 0.125);
        // pandas has no integers with gaps: they are floats, and the gap is a null.
        assert_eq!(columns.opt_i64("rank").unwrap(), [Some(7), None, Some(9)]);
    }
}

#[test]
fn wrong_files_and_columns_are_explained() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let good = dir.path().join("good.parquet");
    write(&good, Format::Parquet, &[batch(0)]);
    let whole = fs::read(&good).unwrap();
    let feather = dir.path().join("good.feather");
    write(&feather, Format::Feather, &[batch(0)]);
    let errors: Vec<anyhow::Error> = vec![
        TableReader::open(dir.path().join("none.parquet"))
            .unwrap_err()
            .into(),
        TableReader::open(file("empty.parquet", b""))
            .unwrap_err()
            .into(),
        TableReader::open(file("text.parquet", b"neuron,loss\n1,2\n"))
            .unwrap_err()
            .into(),
        TableReader::open(file("v1.feather", b"FEA1...."))
            .unwrap_err()
            .into(),
        TableReader::open(file("short.parquet", &whole[..whole.len() / 2]))
            .unwrap_err()
            .into(),
        TableReader::open(&good)
            .unwrap()
            .read(&["los"])
            .unwrap_err()
            .into(),
        Format::from_path("table.xlsx").unwrap_err().into(),
    ];
    let text: String = errors
        .into_iter()
        .map(|error| message(&error) + "\n")
        .collect();
    insta::assert_snapshot!(text.replace(&dir.path().display().to_string(), "DIR"));

    // Damage anywhere is an error or changes values, and never takes the process down.
    let whole = fs::read(&feather).unwrap();
    for at in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        if let Ok(table) = TableReader::open(file("damaged.feather", &bytes)) {
            let _ = table.read(&["neuron"]).map(|columns| columns.i64("neuron"));
        }
    }
}

#[test]
fn a_table_not_finished_is_not_there() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("positions.parquet");
    let mut writer = TableWriter::create(&path, batch(0).schema(), Format::Parquet).unwrap();
    writer.write(&batch(0)).unwrap();
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
