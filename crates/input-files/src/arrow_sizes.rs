//! The sizes that an Arrow file claims, checked before `arrow` makes room for them.

use std::io::{self, Read, Seek, SeekFrom};

use arrow::ipc::{CompressionType, reader::read_footer_length, root_as_footer, root_as_message};

/// How much larger than its compressed bytes a buffer can be: LZ4 writes 255 bytes for one at most, Zstandard a block of 128 KiB for four.
const LZ4_RATIO: u64 = 255;
const ZSTD_RATIO: u64 = 1 << 15;
/// What a few bytes can be, whatever the ratio.
const SMALL: u64 = 1 << 18;
/// Magic, padding, footer length, magic.
const TRAILER: u64 = 10;

/// Whether all that a file with a footer (Feather, `.arrow`) says of its parts lies within it.
///
/// What is damaged in other ways is left for the reader to find.
///
/// # Errors
/// - what reading reports, and [`io::ErrorKind::InvalidData`] with a sentence for a size that cannot be
pub(crate) fn check(file: &mut (impl Read + Seek)) -> io::Result<()> {
    let len = file.seek(SeekFrom::End(0))?;
    let Some(footer_end) = len.checked_sub(TRAILER) else {
        return Ok(());
    };
    let mut trailer = [0; TRAILER as usize];
    read_at(file, footer_end, &mut trailer)?;
    let Ok(footer_len) = read_footer_length(trailer) else {
        return Ok(());
    };
    fits("footer", footer_len as u64, footer_end)?;
    let mut bytes = vec![0; footer_len];
    read_at(file, footer_end - footer_len as u64, &mut bytes)?;
    let Ok(footer) = root_as_footer(&bytes) else {
        return Ok(());
    };
    let blocks = [footer.dictionaries(), footer.recordBatches()];
    for block in blocks.into_iter().flatten().flatten() {
        let size = |value: i64| u64::try_from(value).map_err(|_| cannot_be("block", value));
        let (start, head, body) = (
            size(block.offset())?,
            size(block.metaDataLength().into())?,
            size(block.bodyLength())?,
        );
        fits(
            "block",
            head.saturating_add(body),
            len.saturating_sub(start),
        )?;
        let mut message = vec![0; head as usize];
        read_at(file, start, &mut message)?;
        check_buffers(file, &message, start + head, body)?;
    }
    Ok(())
}

/// The lengths that the compressed buffers of a message say they have.
fn check_buffers(
    file: &mut (impl Read + Seek),
    message: &[u8],
    body_start: u64,
    body: u64,
) -> io::Result<()> {
    // The length of the message, after a mark in newer files.
    let skipped = if message.starts_with(&[0xff; 4]) {
        8
    } else {
        4
    };
    let Some(Ok(message)) = message.get(skipped..).map(root_as_message) else {
        return Ok(());
    };
    let batch = message
        .header_as_record_batch()
        .or_else(|| message.header_as_dictionary_batch()?.data());
    let Some((batch, compression)) = batch.and_then(|batch| Some((batch, batch.compression()?)))
    else {
        return Ok(());
    };
    let ratio = match compression.codec() {
        CompressionType::LZ4_FRAME => LZ4_RATIO,
        _ => ZSTD_RATIO,
    };
    for buffer in batch.buffers().into_iter().flatten() {
        let (Ok(offset), Ok(length)) = (
            u64::try_from(buffer.offset()),
            u64::try_from(buffer.length()),
        ) else {
            return Err(cannot_be("buffer", buffer.length()));
        };
        fits("buffer", length, body.saturating_sub(offset))?;
        if length < 8 {
            continue;
        }
        let mut prefix = [0; 8];
        read_at(file, body_start + offset, &mut prefix)?;
        // -1 says that it is not compressed.
        if let Ok(claimed) = u64::try_from(i64::from_le_bytes(prefix)) {
            let most = length.saturating_mul(ratio).saturating_add(SMALL);
            fits("compressed buffer", claimed, most)?;
        }
    }
    Ok(())
}

/// Whether a part of `size` bytes is no larger than the room for it.
fn fits(what: &str, size: u64, room: u64) -> io::Result<()> {
    match size <= room {
        true => Ok(()),
        false => Err(cannot_be(what, size)),
    }
}

fn cannot_be(what: &str, size: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "it says that a {what} has {size} bytes, which the file cannot hold: it is damaged or cut off"
        ),
    )
}

fn read_at(file: &mut (impl Read + Seek), at: u64, bytes: &mut [u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(bytes)
}
