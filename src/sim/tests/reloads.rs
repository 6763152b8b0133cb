//! Reloads over the real worker in virtual time: what stays, what ends, what is counted.
