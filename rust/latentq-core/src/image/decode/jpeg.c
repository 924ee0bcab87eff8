/* Decoding of a JPEG in memory, in the steps that jpeg.rs calls.
 *
 * It drives libjpeg as Pillow does, so that the same files are accepted and refused: the source manager never inserts an
 * EOI marker when the data end (it suspends, and the caller refuses the file), warnings are not errors, and neither is a
 * missing EOI after the last row. */
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <jpeglib.h>
#include <jerror.h>

enum { LATENTQ_OK = 0, LATENTQ_TRUNCATED = 1, LATENTQ_BROKEN = 2 };

typedef struct {
  struct jpeg_decompress_struct info;
  struct jpeg_error_mgr errors;
  struct jpeg_source_mgr source;
  struct jpeg_progress_mgr progress;
  jmp_buf caller;
  /* Nonzero once libjpeg has asked for more data than there are. */
  int starved;
  int max_scans;
  char message[JMSG_LENGTH_MAX];
} latentq_jpeg;

static void fail(j_common_ptr info) {
  latentq_jpeg *jpeg = (latentq_jpeg *)info->client_data;
  info->err->format_message(info, jpeg->message);
  longjmp(jpeg->caller, 1);
}

static void ignore_message(j_common_ptr info) { (void)info; }

static void ignore_source(j_decompress_ptr info) { (void)info; }

static boolean suspend(j_decompress_ptr info) {
  ((latentq_jpeg *)info->client_data)->starved = 1;
  return FALSE;
}

static void skip(j_decompress_ptr info, long count) {
  size_t left = info->src->bytes_in_buffer;
  size_t step = count > 0 ? (size_t)count : 0;
  if (step > left) step = left;
  info->src->next_input_byte += step;
  info->src->bytes_in_buffer -= step;
}

/* Called before each part of a scan is read: bounds the work for a small file of many scans. */
static void check_scans(j_common_ptr info) {
  latentq_jpeg *jpeg = (latentq_jpeg *)info->client_data;
  if (jpeg->info.input_scan_number <= jpeg->max_scans) return;
  snprintf(jpeg->message, sizeof jpeg->message, "more than %d scans, the limit for its size", jpeg->max_scans);
  longjmp(jpeg->caller, 1);
}

/* Returns NULL if out of memory. */
latentq_jpeg *latentq_jpeg_new(void) {
  latentq_jpeg *jpeg = calloc(1, sizeof *jpeg);
  if (jpeg == NULL) return NULL;
  jpeg->info.err = jpeg_std_error(&jpeg->errors);
  jpeg->info.client_data = jpeg;
  jpeg->errors.error_exit = fail;
  jpeg->errors.output_message = ignore_message;
  if (setjmp(jpeg->caller)) {
    jpeg_destroy_decompress(&jpeg->info);
    free(jpeg);
    return NULL;
  }
  jpeg_create_decompress(&jpeg->info);
  return jpeg;
}

void latentq_jpeg_free(latentq_jpeg *jpeg) {
  if (setjmp(jpeg->caller) == 0) jpeg_destroy_decompress(&jpeg->info);
  free(jpeg);
}

const char *latentq_jpeg_message(const latentq_jpeg *jpeg) { return jpeg->message; }

/* Reads the header and everything before the first row. `data` must stay valid until the last call.
 * stored, wanted: libjpeg's numbers of the color space in the file (negative: by its markers) and of the output.
 * channels: expected number of output channels. shrink: 1, 2, 4 or 8. max_scans: more scans are refused.
 * width, height: in, the size of the image, which the caller checked; out, the size of the output. */
int latentq_jpeg_start(latentq_jpeg *jpeg, const uint8_t *data, size_t length, int stored, int wanted,
                       int channels, unsigned shrink, int max_scans, uint32_t *width, uint32_t *height) {
  int found;
  if (setjmp(jpeg->caller)) return LATENTQ_BROKEN;
  jpeg->source.init_source = ignore_source;
  jpeg->source.fill_input_buffer = suspend;
  jpeg->source.skip_input_data = skip;
  jpeg->source.resync_to_restart = jpeg_resync_to_restart;
  jpeg->source.term_source = ignore_source;
  jpeg->source.next_input_byte = data;
  jpeg->source.bytes_in_buffer = length;
  jpeg->info.src = &jpeg->source;
  jpeg->max_scans = max_scans;
  jpeg->progress.progress_monitor = check_scans;
  jpeg->info.progress = &jpeg->progress;
  do {
    found = jpeg_read_header(&jpeg->info, FALSE);
  } while (found == JPEG_HEADER_TABLES_ONLY);
  if (found == JPEG_SUSPENDED) return LATENTQ_TRUNCATED;
  if (jpeg->info.image_width != *width || jpeg->info.image_height != *height) {
    snprintf(jpeg->message, sizeof jpeg->message, "two frame headers disagree on the size");
    return LATENTQ_BROKEN;
  }
  if (stored >= 0) jpeg->info.jpeg_color_space = (J_COLOR_SPACE)stored;
  jpeg->info.out_color_space = (J_COLOR_SPACE)wanted;
  jpeg->info.scale_num = 1;
  jpeg->info.scale_denom = shrink;
  if (!jpeg_start_decompress(&jpeg->info)) return LATENTQ_TRUNCATED;
  if (jpeg->info.output_components != channels) {
    snprintf(jpeg->message, sizeof jpeg->message, "%d channels instead of %d", jpeg->info.output_components, channels);
    return LATENTQ_BROKEN;
  }
  *width = jpeg->info.output_width;
  *height = jpeg->info.output_height;
  return LATENTQ_OK;
}

/* Nonzero if the image has several scans, whose coefficients are buffered until all are read. */
int latentq_jpeg_has_scans(latentq_jpeg *jpeg) { return jpeg_has_multiple_scans(&jpeg->info); }

/* Restricts rows to `width` columns from `left`. Both are updated to whole blocks. */
int latentq_jpeg_crop(latentq_jpeg *jpeg, uint32_t *left, uint32_t *width) {
  JDIMENSION x = *left, columns = *width;
  if (setjmp(jpeg->caller)) return LATENTQ_BROKEN;
  jpeg_crop_scanline(&jpeg->info, &x, &columns);
  *left = x;
  *width = columns;
  return LATENTQ_OK;
}

/* Skips rows. They are still parsed, so a file that ends among them is detected. Must not include the last row, after
 * which libjpeg would not read on. */
int latentq_jpeg_skip(latentq_jpeg *jpeg, uint32_t rows) {
  if (setjmp(jpeg->caller)) return LATENTQ_BROKEN;
  if (jpeg_skip_scanlines(&jpeg->info, rows) != rows || jpeg->starved) return LATENTQ_TRUNCATED;
  return LATENTQ_OK;
}

/* Writes `rows` rows, `stride` bytes apart. */
int latentq_jpeg_rows(latentq_jpeg *jpeg, uint8_t *out, size_t stride, uint32_t rows) {
  if (setjmp(jpeg->caller)) return LATENTQ_BROKEN;
  while (rows > 0) {
    JSAMPROW lines[16];
    JDIMENSION wanted = rows < 16 ? rows : 16, i;
    for (i = 0; i < wanted; i++) lines[i] = out + i * stride;
    wanted = jpeg_read_scanlines(&jpeg->info, lines, wanted);
    if (wanted == 0) return LATENTQ_TRUNCATED;
    rows -= wanted;
    out += wanted * stride;
  }
  return LATENTQ_OK;
}

/* Reads to the end of the image, to detect broken files as Pillow does. */
int latentq_jpeg_finish(latentq_jpeg *jpeg) {
  if (setjmp(jpeg->caller)) return LATENTQ_BROKEN;
  jpeg_finish_decompress(&jpeg->info);
  return LATENTQ_OK;
}
