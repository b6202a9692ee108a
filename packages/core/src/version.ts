/** Of all packages together. */
export const tesseraVersion = "0.1.0"
