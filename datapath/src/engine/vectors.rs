//! Memory in pieces, as an operation is given it. Numbers only: nothing here looks into the memory.

use super::IoVector;

/// Adds memory to the vectors; a piece that follows the last one directly makes it longer.
pub(crate) fn add_vector(vectors: &mut Vec<IoVector>, base: *mut u8, bytes: usize) {
    if let Some(last) = vectors.last_mut()
        && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == base
    {
        last.iov_len += bytes;
        return;
    }
    vectors.push(IoVector { iov_base: base.cast(), iov_len: bytes });
}

/// Takes the first `bytes`, which are done, off the vectors.
pub(crate) fn advance_vectors(vectors: &mut Vec<IoVector>, mut bytes: usize) {
    let mut whole = 0;
    for vector in vectors.iter_mut() {
        if bytes < vector.iov_len {
            vector.iov_base = vector.iov_base.wrapping_byte_add(bytes);
            vector.iov_len -= bytes;
            break;
        }
        bytes -= vector.iov_len;
        whole += 1;
    }
    vectors.drain(..whole);
}
