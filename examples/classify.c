/* Classifies a picture with a network that `deepcomp export-c` wrote:

       cc -O3 -I DIR examples/classify.c DIR/net.c -lm -o classify
       ./classify PICTURE.pgm

   The picture is a plain PGM or PPM file of the size of the network's input; its numbers are divided by the largest, so
   that the network gets 0 to 1. Each output is a line: its number and its value; an arrow marks the largest. */

#include <stdio.h>
#include <string.h>

#include "net.h"

static float input[NET_INPUT], output[NET_OUTPUT], scratch[NET_SCRATCH];

int main(int count, char **arguments)
{
    FILE *file = count == 2 ? fopen(arguments[1], "r") : NULL;
    char kind[3] = "";
    int width, height, largest, best = 0;
    if (!file || fscanf(file, "%2s %d %d %d", kind, &width, &height, &largest) != 4 || largest < 1
        || (strcmp(kind, "P2") && strcmp(kind, "P3"))) {
        fprintf(stderr, "classify: give one plain PGM or PPM file (P2 or P3).\n");
        return 2;
    }
    if (width < 1 || height < 1 || height > NET_INPUT || (long)width * height * (kind[1] == '3' ? 3 : 1) != NET_INPUT) {
        fprintf(stderr, "classify: the picture is %d x %d; the network takes %d numbers.\n", width, height, NET_INPUT);
        return 2;
    }
    for (int i = 0; i < NET_INPUT; i++) {
        int value;
        if (fscanf(file, "%d", &value) != 1 || value < 0 || value > largest) {
            fprintf(stderr, "classify: number %d of the picture is not one from 0 to %d.\n", i, largest);
            return 2;
        }
        input[i] = (float)value / (float)largest;
    }
    fclose(file);
    net_run(input, output, scratch);
    for (int i = 1; i < NET_OUTPUT; i++)
        best = output[i] > output[best] ? i : best;
    for (int i = 0; i < NET_OUTPUT; i++)
        printf("%3d %10.4f%s\n", i, output[i], i == best ? "  <-" : "");
    return 0;
}
