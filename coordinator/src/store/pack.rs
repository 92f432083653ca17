//! Packed binary: bytes, variable-length numbers (LEB128) and short texts. Used in state and history only.

/// Writes packed binary.
#[derive(Debug, Default)]
pub struct Writer {
    /// What was written.
    pub out: Vec<u8>,
}

impl Writer {
    /// One byte.
    pub fn byte(&mut self, byte: u8) -> &mut Self {
        self.out.push(byte);
        self
    }

    /// A number in as many bytes as it needs, seven bits each, low first.
    pub fn number(&mut self, mut number: u64) -> &mut Self {
        while number >= 0x80 {
            self.out.push((number as u8 & 0x7f) | 0x80);
            number >>= 7;
        }
        self.out.push(number as u8);
        self
    }

    /// Bytes whose length the reader knows.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    /// Bytes behind their length.
    pub fn text(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64).raw(bytes)
    }
}

/// Reads packed binary; every call is `None` at the end or when a number is too long.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    /// What is left.
    pub left: &'a [u8],
}

impl<'a> Reader<'a> {
    /// From the beginning of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    /// One byte.
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.left.split_first()?;
        self.left = rest;
        Some(*first)
    }

    /// A number.
    pub fn number(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// A number that fits 32 bits.
    pub fn small(&mut self) -> Option<u32> {
        self.number()?.try_into().ok()
    }

    /// So many bytes.
    pub fn raw(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (first, rest) = self.left.split_at_checked(bytes)?;
        self.left = rest;
        Some(first)
    }

    /// Bytes behind their length.
    pub fn text(&mut self) -> Option<&'a [u8]> {
        let bytes = usize::try_from(self.number()?).ok()?;
        self.raw(bytes)
    }
}
